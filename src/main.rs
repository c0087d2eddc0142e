//! Parses the command line, and runs the server or a tool.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use wirechat::config::{Config, with_environment};
use wirechat::http::access::Access;
use wirechat::net;
use wirechat::net::event_loop::EventLoop;
use wirechat::net::log_writer::LogWriter;
use wirechat::tools::Tool;

const EXIT_FAILURE: u8 = 1; // the server cannot run, for example because its port is in use; or a tool found an error
const EXIT_USAGE: u8 = 2; // the command line or the configuration is invalid
const EXIT_INTERRUPTED: u8 = 130; // a second signal stopped the server: 128 + SIGINT, as shells report it

// A doc comment here would replace the description that --help prints.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(subcommand_help_heading = "Tools", subcommand_value_name = "TOOL")]
struct CommandLine {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let status = run(std::env::args_os().collect()).unwrap_or_else(|(status, message)| {
        let _ = writeln!(std::io::stderr(), "wirechat: {message}"); // eprintln! would panic if stderr is closed
        status
    });
    ExitCode::from(status)
}

/// Returns the exit status. `Err` also has a message for stderr.
fn run(mut arguments: Vec<OsString>) -> Result<u8, (u8, String)> {
    // `wirechat help TOOL` means `wirechat TOOL --help`.
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    let names_a_tool = arguments.get(1).and_then(|name| name.to_str()).is_some_and(Tool::has_subcommand);
    let command = CommandLine::command();
    // An environment variable meant for the server must not make a tool fail.
    let command = if names_a_tool { command } else { with_environment(command) };
    match command.try_get_matches_from(&arguments).and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(CommandLine { tool: None, config }) => serve(&config),
        Ok(CommandLine { tool: Some(tool), .. }) => {
            tool.run().map(|succeeded| if succeeded { 0 } else { EXIT_FAILURE }).map_err(|error| (EXIT_USAGE, error))
        }
        Err(help) if !help.use_stderr() => help.exit(),
        // The value of --trace is optional, so clap parses the `full` of `--trace full` as the name of a tool.
        Err(_) if arguments.windows(2).any(|pair| pair == ["--trace", "full"]) => {
            Err((EXIT_USAGE, "write --trace=full as one word (see --help)".into()))
        }
        Err(error) => Err((EXIT_USAGE, one_line(&error.to_string()))),
    }
}

/// Joins clap's error message and tips into one line, without the usage text.
fn one_line(error: &str) -> String {
    let is_message = |paragraph: &&str| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more");
    let paragraphs = error.trim_start_matches("error: ").split("\n\n").filter(is_message);
    let lines = paragraphs.map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("; ") + " (see --help)"
}

fn serve(config: &Config) -> Result<u8, (u8, String)> {
    let usage = |error| (EXIT_USAGE, error);
    net::trace_filter(config).map_err(usage)?;
    let token_file = config.read_token_file().map_err(usage)?;
    let access = Access::new(config, token_file.as_deref()).map_err(usage)?;
    config.validate().map_err(usage)?;
    let level = match (config.quiet, config.verbose) {
        (true, _) => log::LevelFilter::Warn,
        (_, true) => log::LevelFilter::Debug,
        _ => log::LevelFilter::Info,
    };
    let log = LogWriter::install(level).map_err(usage)?;
    let event_loop = EventLoop::bind(config.clone(), access, log).map_err(|error| (EXIT_FAILURE, error))?;
    print_banner(&event_loop, config);
    let is_clean = event_loop.run().map_err(|error| (EXIT_FAILURE, format!("the poll failed: {error}")))?;
    Ok(if is_clean { 0 } else { EXIT_INTERRUPTED })
}

fn print_banner(server: &EventLoop, config: &Config) {
    let (address, version, connections) = (server.address, env!("CARGO_PKG_VERSION"), server.max_connections);
    let token = match config.tokens {
        _ if config.open => "",
        None => "token=dev-token&",
        Some(_) => "token=TOKEN&", // never a real token: the banner may end up in a log
    };
    let banner = format!(
        "wirechat {version} listens on http://{address}/ for up to {connections} connections\n\
         \x20 page:   open client.html in a browser, or http://{address}/\n\
         \x20 wscat:  wscat -c 'ws://{address}/?{token}username=me&room=general'\n\
         \x20         and type  {{\"event\":\"message\",\"data\":{{\"text\":\"hello from wscat\"}}}}\n\
         \x20 stop:   Ctrl-C\n"
    );
    let _ = std::io::stdout().write_all(banner.as_bytes()); // a closed stdout must not stop the server
}
