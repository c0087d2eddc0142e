//! `wirechat completions SHELL` and `wirechat man` print the completion script and the man page that a package of
//! wirechat installs. The clap crates generate both from the definitions behind `--help`.

use std::io::{self, Write};

use clap::builder::StyledStr;
use clap::{ArgAction, Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::screen::check_written;

/// The name of the program, of its man page and of its completion scripts.
const PROGRAM_NAME: &str = "wirechat";
/// Width of the help in the man page: a man page indents text by seven columns, and a terminal has 80.
const HELP_WIDTH: usize = 72;

#[derive(Debug, Args)]
#[command(max_term_width = 110)]
pub struct CompletionArguments {
    /// Print the completion script for this shell
    shell: Shell,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = "Try:  wirechat man > wirechat.1 && man ./wirechat.1")]
pub struct ManArguments {
    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

/// Prints a script with which the given shell completes the arguments of `command`.
///
/// # Errors
/// A one-line message if writing the script to stdout fails.
pub fn print_completions(arguments: &CompletionArguments, mut command: Command) -> Result<bool, String> {
    let mut script = Vec::new(); // clap_complete panics on a write error, so write to memory instead of stdout
    clap_complete::generate(arguments.shell, &mut command, PROGRAM_NAME, &mut script);
    print(&script)
}

/// Prints the man page of `command` and all its tools.
///
/// # Errors
/// A one-line message if writing the page to stdout fails.
pub fn print_man_page(command: Command) -> Result<bool, String> {
    let mut page = Vec::new();
    write_man_page(command, &mut page).map_err(|error| format!("cannot write the man page: {error}"))?;
    print(&page)
}

fn write_man_page(command: Command, page: &mut Vec<u8>) -> io::Result<()> {
    let mut command = command.term_width(HELP_WIDTH).override_usage("wirechat [OPTIONS]\nwirechat TOOL [ARGUMENTS]");
    command.build();
    let man = Man::new(command.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    let mut rest = Roff::new();
    if let Some(notes) = command.get_after_help() {
        rest.control("SH", ["NOTES"]);
        add_as_is(&mut rest, notes);
    }
    // `Man::render` would refer to a man page per tool. Only this page exists, so write a section on the tools.
    rest.control("SH", ["TOOLS"]);
    command.get_subcommands_mut().for_each(|tool| add_tool(&mut rest, tool));
    rest.to_writer(page)
}

/// Adds the help text of a tool and its subcommands to the man page.
fn add_tool(page: &mut Roff, tool: &mut Command) {
    let name = tool.get_bin_name().unwrap_or_else(|| tool.get_name()).to_owned();
    page.control("SS", [name.as_str()]);
    // Add the tool's examples separately: `render_help` would wrap their lines.
    let help = tool.clone().after_help(StyledStr::new()).render_help();
    add_as_is(page, &help);
    if let Some(examples) = tool.get_after_help() {
        page.control("PP", []);
        add_as_is(page, examples);
    }
    tool.get_subcommands_mut().for_each(|subcommand| add_tool(page, subcommand));
}

/// Adds `text` to the man page with its line breaks preserved.
fn add_as_is(page: &mut Roff, text: &StyledStr) {
    page.control("nf", []);
    page.text([roman(text.to_string().trim_end())]);
    page.control("fi", []);
}

fn print(bytes: &[u8]) -> Result<bool, String> {
    let mut stdout = io::stdout().lock();
    check_written(stdout.write_all(bytes).and_then(|()| stdout.flush())).map(|()| true)
}
