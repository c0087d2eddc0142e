//! Parses the command line, and runs the server or a tool.
#![forbid(unsafe_code)]

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use wirechat::config::{Config, add_environment, format_address, format_error, local_address};
use wirechat::http::{access::AccessControl, jwt::read_key_files};
use wirechat::net::{self, event_loop::EventLoop, log_writer::LogWriter, tls};
use wirechat::tools::{Tool, poke::player::LoopbackPlayer};
use wirechat::{config_file, systemd};

const EXIT_FAILURE: u8 = 1; // exit status if the server fails (port in use, for example) or a tool finds an error
const EXIT_USAGE: u8 = 2; // exit status if the command line or the configuration is invalid, or a tool cannot run

// A doc comment on `CommandLine` would replace the description that --help prints.
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
    let status = run(std::env::args_os().collect()).map(|succeeded| if succeeded { 0 } else { EXIT_FAILURE });
    let status = status.unwrap_or_else(|(status, message)| {
        let _ = writeln!(std::io::stderr(), "wirechat: {message}"); // `eprintln!` would panic if stderr were closed
        status
    });
    ExitCode::from(status)
}

/// Runs the server or a tool. `Ok(false)` is a failure that is already reported; `Err` has the exit status and message.
fn run(mut arguments: Vec<OsString>) -> Result<bool, (u8, String)> {
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    let names_a_tool = arguments.get(1).and_then(|name| name.to_str()).is_some_and(Tool::has_subcommand);
    // A tool does not use the server's options, so it must not fail because of an invalid one in the environment or in
    // a configuration file. Read both sources only for the server.
    let mut command = CommandLine::command();
    if !names_a_tool {
        arguments = config_file::add_config_file(&command, arguments).map_err(|error| (EXIT_USAGE, error))?;
        command = add_environment(command);
    }
    // clap mistakes the `full` in `--trace full` for a tool. A special error message suggests `--trace=full` instead.
    let has_trace_full = arguments.windows(2).any(|pair| pair == ["--trace", "full"]);
    match command.try_get_matches_from(&arguments).and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(CommandLine { tool: None, config }) => serve(config),
        Ok(CommandLine { tool: Some(tool), .. }) => tool.run(CommandLine::command()).map_err(|why| (EXIT_USAGE, why)),
        Err(help) if !help.use_stderr() => help.exit(),
        Err(_) if has_trace_full => Err((EXIT_USAGE, "write --trace=full as one word (see --help)".into())),
        Err(error) => Err((EXIT_USAGE, format_error(&error.to_string()))),
    }
}

fn serve(mut config: Config) -> Result<bool, (u8, String)> {
    let usage_error = |error| (EXIT_USAGE, error);
    let inherited = systemd::take_sockets().map_err(usage_error)?;
    if !inherited.is_empty() {
        config.listen = inherited.iter().filter_map(|socket| socket.local_addr().ok()).collect();
    }
    net::parse_trace_filter(&config).map_err(usage_error)?;
    let tokens = config.read_token_file().map_err(usage_error)?;
    let mut access = AccessControl::new(&config, tokens.as_deref()).map_err(usage_error)?;
    config.validate().map_err(usage_error)?;
    let (errors, _) = access.jwt_keys.load(&config, read_key_files(&config));
    errors.into_iter().try_for_each(|error| Err(usage_error(error)))?;
    let tls = tls::Acceptor::new(&config).map_err(usage_error)?;
    let level = if config.quiet { log::LevelFilter::Warn } else { log::LevelFilter::Info };
    let level = if config.verbose { log::LevelFilter::Debug } else { level };
    let log = LogWriter::install(level).map_err(usage_error)?;
    let player = Box::new(LoopbackPlayer);
    let event_loop = EventLoop::bind(config.clone(), inherited, access, log, player, tls);
    let event_loop = event_loop.map_err(|error| (EXIT_FAILURE, error))?;
    // A closed stdout must not stop the server.
    let _ = std::io::stdout().write_all(format_banner(&config, &event_loop).as_bytes());
    event_loop.run().map_err(|error| (EXIT_FAILURE, format!("the poll failed: {error}")))
}

/// The start-up banner may end up in a log, so it never shows a real access token.
fn format_banner(config: &Config, event_loop: &EventLoop) -> String {
    let (version, connections) = (env!("CARGO_PKG_VERSION"), event_loop.max_connections);
    let token = if config.has_demo_tokens() { "token=dev-token&" } else { "token=TOKEN&" };
    let token = if config.open { "" } else { token };
    let s = if config.features.tls_cert.is_some() { "s" } else { "" };
    let url = |address| local_address(address).map(|address| format!("http{s}://{address}/"));
    let addresses = &event_loop.addresses;
    let urls = addresses.iter().map(|address| url(address).unwrap_or_else(|| format_address(address)));
    let urls = urls.collect::<Vec<_>>().join(", ");
    let usage = match addresses.iter().find_map(local_address) {
        Some(address) => format!(
            "\x20 page:   open client.html in a browser, or http{s}://{address}/\n\
             \x20 wscat:  wscat -c 'ws{s}://{address}/?{token}username=me&room=general'\n\
             \x20         and type  {{\"event\":\"message\",\"data\":{{\"text\":\"hello from wscat\"}}}}"
        ),
        None => format!("\x20 curl:   curl --unix-socket {} http://localhost/health", urls.trim_start_matches("unix:")),
    };
    let history = config.features.history_db.iter().map(|path| format!("  history: {}\n", path.display()));
    let admin = event_loop.admin.iter().map(|admin| format!("  admin:  http://{}/\n", admin.address));
    let others: String = history.chain(admin).collect();
    let first = format!("wirechat {version} listens on {urls} for up to {connections} connections");
    format!("{first}\n{usage}\n{others}\x20 stop:   Ctrl-C\n")
}
