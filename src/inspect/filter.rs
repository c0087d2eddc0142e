//! `--trace-filter`: which records are asked for.

use super::{Record, What};
use crate::ws::frame::Opcode;

/// Everything that a record must be, to be shown. Conditions of one kind are alternatives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<Condition>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    /// Of this connection.
    Connection(usize),
    /// Of a user of this name.
    User(String),
    /// Control frames, and what they do to the state.
    Control,
    /// Broken rules, refused requests, and closes over errors.
    Errors,
}

impl Filter {
    /// Reads conditions with commas between them: `#7` or `connection=7`, `user=alice`, `control`, `errors`.
    ///
    /// # Errors
    /// A line that says what there is.
    ///
    /// ```
    /// use wirechat::inspect::filter::Filter;
    /// assert!(Filter::parse("user=alice,control").is_ok());
    /// assert!(Filter::parse("nonsense").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Filter, String> {
        text.split(',').map(str::trim).map(Condition::parse).collect::<Result<_, _>>().map(Filter)
    }

    /// Whether a record is asked for: by who it is of, and by what it is.
    pub fn shows(&self, record: &Record) -> bool {
        let whose = |condition: &&Condition| matches!(condition, Condition::Connection(_) | Condition::User(_));
        let (who, what): (Vec<_>, Vec<_>) = self.0.iter().partition(whose);
        let holds = |conditions: &[&Condition]| {
            conditions.is_empty() || conditions.iter().any(|condition| condition.holds(record))
        };
        holds(&who) && holds(&what)
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Condition, String> {
        let number = text.strip_prefix('#').or(text.strip_prefix("connection="));
        match (number.map(str::parse), text.strip_prefix("user="), text) {
            (Some(Ok(number)), ..) => Ok(Condition::Connection(number)),
            (_, Some(user), _) if !user.is_empty() => Ok(Condition::User(user.to_owned())),
            (_, _, "control") => Ok(Condition::Control),
            (_, _, "errors") => Ok(Condition::Errors),
            _ => Err("must be connection=N, user=NAME, control or errors, or several with commas between".into()),
        }
    }

    fn holds(&self, record: &Record) -> bool {
        match self {
            Condition::Connection(number) => record.connection == *number,
            Condition::User(user) => record.user.as_deref() == Some(user),
            Condition::Control => match &record.what {
                What::Frame(frame) => Opcode::from_bits(frame.header.opcode()).is_ok_and(Opcode::is_control),
                What::State(_) | What::End(_) => true,
                _ => false,
            },
            Condition::Errors => match &record.what {
                What::Failure(_) | What::Missed(_) => true,
                What::Response(answer) => answer.status >= 400,
                What::End(end) => !end.is_clean && end.began.is_some(),
                _ => false,
            },
        }
    }
}
