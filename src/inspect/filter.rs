//! Selects records for `--trace-filter`. If the filter names connections or users, a record must match one of them. If
//! the filter names kinds (control frames, errors), the record must also match one of those kinds.

use super::{Record, RecordKind};
use crate::ws::frame::Opcode;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<Condition>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Connection(usize),
    User(String),
    /// Matches records of control frames, of changes of the connection state, and of the close of the TCP connection.
    Control,
    /// Matches protocol errors, rejected requests, reports of dropped records, and incomplete closing handshakes.
    Errors,
}

impl Filter {
    /// Parses comma-separated conditions: `#7` or `connection=7`, `user=alice`, `control`, `errors`.
    ///
    /// # Errors
    /// Returns a message that lists the valid conditions.
    ///
    /// ```
    /// use wirechat::inspect::filter::Filter;
    /// assert!(Filter::parse("user=alice,control").is_ok());
    /// assert!(Filter::parse("nonsense").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Filter, String> {
        text.split(',').map(str::trim).map(Condition::parse).collect::<Result<_, _>>().map(Filter)
    }

    pub fn matches(&self, record: &Record) -> bool {
        let is_about_connection =
            |condition: &&Condition| matches!(condition, Condition::Connection(_) | Condition::User(_));
        let (connection, kind): (Vec<_>, Vec<_>) = self.0.iter().partition(is_about_connection);
        // A filter without connections or users matches every connection; a filter without kinds matches every kind.
        let holds = |group: &[&Condition]| group.is_empty() || group.iter().any(|condition| condition.matches(record));
        holds(&connection) && holds(&kind)
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Condition, String> {
        // The trace prints `#7`, but an unquoted `#` starts a shell comment, so accept `connection=7` too.
        let number = text.strip_prefix('#').or(text.strip_prefix("connection="));
        match (number.map(str::parse), text.strip_prefix("user="), text) {
            (Some(Ok(number)), ..) => Ok(Condition::Connection(number)),
            (_, Some(user), _) if !user.is_empty() => Ok(Condition::User(user.to_owned())),
            (_, _, "control") => Ok(Condition::Control),
            (_, _, "errors") => Ok(Condition::Errors),
            _ => {
                Err("must be connection=N, user=NAME, control or errors, or several of them separated by commas".into())
            }
        }
    }

    fn matches(&self, record: &Record) -> bool {
        match self {
            Condition::Connection(number) => record.connection == *number,
            Condition::User(user) => record.user.as_deref() == Some(user),
            Condition::Control => match &record.kind {
                RecordKind::Frame(frame) => Opcode::from_bits(frame.header.opcode()).is_ok_and(Opcode::is_control),
                RecordKind::State(_) | RecordKind::End(_) => true,
                _ => false,
            },
            Condition::Errors => match &record.kind {
                RecordKind::Failure(_) | RecordKind::Missed(_) => true,
                RecordKind::Response(response) => response.status >= 400,
                // An incomplete closing handshake is an error. A TCP close without any Close frame is not an error.
                RecordKind::End(end) => !end.is_clean && end.first_close.is_some(),
                _ => false,
            },
        }
    }
}
