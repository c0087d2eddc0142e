//! `wirechat history FILE` exports the messages in a `--history-db` file as text or JSON, checks the file for damage,
//! or copies the file. The tool fails while a running server has the file locked.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::Serialize;

use crate::broker::Message;
use crate::broker::sqlite::{database::StoredMessage, file::DAMAGED, reader::HistoryReader};
use crate::inspect::escape::escape;
use crate::tools::screen::check_written;

const AFTER_HELP: &str = "\
Stop the server first: it locks the file. Clients that reconnect afterwards miss nothing.
Try:  wirechat history chat.db export --room general
      wirechat history chat.db backup chat-backup.db

The exit code is 0 if the command succeeds, 1 if the check finds damage, 2 if the file cannot be used.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = false)]
pub struct Arguments {
    /// Read this history file, which wirechat --history-db FILE wrote
    file: PathBuf,

    #[command(subcommand)]
    command: Subcommand,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Print all messages, room by room, oldest first
    Export {
        /// Print only this room's messages
        #[arg(long)]
        room: Option<String>,
        /// Print each message as a JSON object on its own line
        #[arg(long)]
        json: bool,
        #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
        help: Option<bool>,
    },
    /// Check the whole history file for damage
    Check {
        #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
        help: Option<bool>,
    },
    /// Write a compact copy of the history file
    Backup {
        /// Write the copy to this new file
        to: PathBuf,
        #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
        help: Option<bool>,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    room: &'a str,
    #[serde(flatten)]
    message: Message,
}

/// Runs one `wirechat history` command. Returns `Ok(false)` only if the `check` command finds a damaged file.
///
/// # Errors
/// Returns a one-line message, for example if a server holds its lock on the file.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let name = arguments.file.display();
    let print_damage = |damage: &str| {
        let _ = writeln!(io::stdout(), "{name} is damaged: {damage}");
        Ok(false)
    };
    let mut file = match (HistoryReader::open(&arguments.file), &arguments.command) {
        (Ok(file), _) => file,
        (Err(error), Subcommand::Check { .. }) if error.starts_with(DAMAGED) => return print_damage(&error),
        (Err(error), _) => return Err(format!("{name}: {error}")),
    };
    let done = match &arguments.command {
        Subcommand::Export { room, json, .. } => export(&file, room.as_deref(), *json),
        Subcommand::Check { .. } => match file.check() {
            Ok((rooms, messages)) => {
                let _ = writeln!(io::stdout(), "{name} is sound: {messages} messages in {rooms} rooms");
                Ok(())
            }
            Err(damage) => return print_damage(&damage),
        },
        Subcommand::Backup { to, .. } => file.copy_to(to),
    };
    done.map(|()| true).map_err(|error| format!("{name}: {error}"))
}

fn export(file: &HistoryReader, room: Option<&str>, json: bool) -> Result<(), String> {
    let rooms = file.room_names()?;
    if let Some(room) = room.filter(|room| !rooms.iter().any(|name| name == room)) {
        return Err(format!("there is no room {room:?}"));
    }
    let mut output = BufWriter::new(io::stdout().lock());
    let mut write = |room: &str, message: StoredMessage| {
        if json {
            let line = serde_json::to_string(&Line { room, message: Message::from(message) })?;
            writeln!(output, "{line}")
        } else {
            let StoredMessage { time, username, text, .. } = message;
            // Indent all lines of a message except the first, so that no later line looks like another message.
            let lines = text.split('\n').map(escape).collect::<Vec<_>>().join("\n    ");
            writeln!(output, "{time} #{room} {username}: {lines}")
        }
    };
    let mut written = Ok(());
    for name in rooms.iter().filter(|name| room.is_none_or(|room| *name == room)) {
        if written.is_err() {
            break;
        }
        file.for_each_message(name, |message| {
            written = write(name, message);
            written.is_ok()
        })?;
    }
    check_written(written.and_then(|()| output.flush()))
}
