//! `--config FILE`: a TOML file whose keys are option names, such as `max-text = 1000`. An environment
//! variable overrides the file, and an option on the command line overrides both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Command, parser::ValueSource};
use toml::{Table, Value};

use crate::config::{add_environment, format_error};

/// Options that the `--config` file cannot set.
const COMMAND_LINE_ONLY: [&str; 3] = ["config", "help", "version"];

/// Reads the `--config` file and inserts its options before all other arguments, except options that the command line
/// or the environment sets. `Err` is an error message for the operator.
pub fn add_config_file(command: &Command, mut arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    // Ignore errors in arguments other than `--config`: the caller reports those errors later.
    let lenient = add_environment(command.clone()).ignore_errors(true).try_get_matches_from(&arguments);
    let Some((matches, path)) = lenient.ok().and_then(|matches| {
        let path = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned()?;
        Some((matches, path))
    }) else {
        return Ok(arguments);
    };
    let error = |why: String| format!("--config {}: {why}", path.display());
    let mut from_file = Vec::new();
    for (name, value) in read(&path).map_err(error)? {
        let option = to_arguments(&name, value).map_err(|why| error(format!("{name}: {why}")))?;
        // Check each option of the file separately, so that an error message can name the file.
        let checked = command.clone().try_get_matches_from(["wirechat".into()].iter().chain(&option));
        checked.map_err(|why| error(format_error(&why.to_string())))?;
        let source = matches.value_source(&name.replace('-', "_"));
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            from_file.extend(option);
        }
    }
    arguments.splice(1..1, from_file);
    Ok(arguments)
}

fn read(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

/// Converts an option of the `--config` file into arguments. An array becomes one argument per value:
/// `["--allow-host=a", "--allow-host=b"]`.
fn to_arguments(name: &str, value: Value) -> Result<Vec<OsString>, &'static str> {
    if COMMAND_LINE_ONLY.contains(&name) {
        return Err("only the command line can set this option");
    }
    let values = if let Value::Array(values) = value { values } else { vec![value] };
    let arguments = values.into_iter().map(|value| match value {
        Value::Boolean(is_set) => Ok(is_set.then(|| format!("--{name}"))),
        Value::String(text) => Ok(Some(format!("--{name}={text}"))),
        Value::Integer(number) => Ok(Some(format!("--{name}={number}"))),
        Value::Float(number) => Ok(Some(format!("--{name}={number}"))),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => Err("write a text, a number, true or false"),
    });
    arguments.filter_map(Result::transpose).map(|argument| argument.map(OsString::from)).collect()
}
