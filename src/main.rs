//! The command line: arguments become a `Config`, the `Config` a running server; or they name a tool, and it runs.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use wirechat::server::{Config, Journal, Server, Stopped};
use wirechat::tools::Tool;

/// Something is in the way: a port in use, a bad file. Of a tool: the answer is no.
const FAILURE: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;
/// Ended by a second signal: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

// The server's options stand beside the name of the program; a tool has options of its own. (No doc comments: they would
// take the place of the one that `--help` shows.)
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(subcommand_help_heading = "Tools", subcommand_value_name = "TOOL")]
struct CommandLine {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    config: Config,
}

// The command line of a tool alone: the server's environment variables are none of its business, right or wrong.
#[derive(Parser)]
#[command(name = "wirechat", disable_help_flag = true, disable_help_subcommand = true)]
struct ToolLine {
    #[command(subcommand)]
    tool: Tool,
}

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    let names_a_tool = first.as_deref().and_then(OsStr::to_str).is_some_and(Tool::has_subcommand);
    let parsed = match names_a_tool {
        true => ToolLine::try_parse().map(|line| run_tool(line.tool)),
        false => CommandLine::try_parse().map(|line| line.tool.map_or_else(|| serve(line.config), run_tool)),
    };
    match parsed {
        Ok(code) => code,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => error.exit(),
        Err(_) if has_trace_in_two_words() => fail(USAGE, "write --trace=full as one word (see --help)"),
        Err(error) => fail(USAGE, &first_line(&error.to_string())),
    }
}

/// `--trace full`: the value may be left out, so the parser takes `full` for the name of a tool, and says so.
fn has_trace_in_two_words() -> bool {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    arguments.windows(2).any(|two| two[0] == "--trace" && two[1] == "full")
}

fn run_tool(tool: Tool) -> ExitCode {
    match tool.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILURE),
        Err(error) => fail(USAGE, &error),
    }
}

fn serve(config: Config) -> ExitCode {
    if let Err(error) = config.validate().and_then(|()| Server::check(&config)) {
        return fail(USAGE, &error);
    }
    let server = match Server::bind(config.clone(), Journal::install(config.log_level())) {
        Ok(server) => server,
        Err(error) => return fail(FAILURE, &error),
    };
    print_banner(&server, &config);
    match server.run() {
        Ok(Stopped::Cleanly) => ExitCode::SUCCESS,
        Ok(Stopped::AtOnce) => ExitCode::from(INTERRUPTED),
        Err(error) => fail(FAILURE, &format!("the poll failed: {error}")),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    // If nobody reads stderr, the exit code still tells.
    let _ = writeln!(std::io::stderr(), "wirechat: {message}");
    ExitCode::from(code)
}

/// The first paragraph of an error of the command line, as one line.
fn first_line(error: &str) -> String {
    let paragraph = error.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{} (see --help)", line.trim_start_matches("error: "))
}

fn print_banner(server: &Server, config: &Config) {
    let address = server.local_addr();
    let token = match &config.tokens {
        _ if config.open => "",
        None => "token=dev-token&",
        Some(_) => "token=TOKEN&",
    };
    // If nobody reads stdout, the server runs all the same.
    let _ = writeln!(
        std::io::stdout(),
        "wirechat {} listens on http://{address}/ for up to {} connections\n\
         \x20 page:   open client.html in a browser, or http://{address}/\n\
         \x20 wscat:  wscat -c 'ws://{address}/?{token}username=me&room=general'\n\
         \x20         and type  {{\"event\":\"message\",\"data\":{{\"text\":\"hello from wscat\"}}}}\n\
         \x20 stop:   Ctrl-C",
        env!("CARGO_PKG_VERSION"),
        server.max_connections(),
    );
}
