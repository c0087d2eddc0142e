//! What `poke` tells a person: the exchange, what was expected, what came, the rule, the verdict.
//!
//! The subtle thing: a server may send without end. Of an exchange the first lines are shown as they happen, and the
//! last ones once it is over; what is between is counted.

use std::collections::VecDeque;

use super::Target;
use super::case::Case;
use super::catalogue::{self, PARTS};
use super::play::{Outcome, Patience};
use super::verdict::{self, Verdict, judge};
use crate::inspect::text::Detail;
use crate::inspect::{Record, What};
use crate::tools::screen::{Screen, Tone, escaped};

/// So many records are shown as they come, and so many of the last.
const FIRST: usize = 30;
const LAST: usize = 10;
/// Of a server that does not even answer the first case.
const NOTHING: &str =
    "Nothing came back at all, so the other cases are left out. Is it a WebSocket server that listens there?";

/// Tells of cases on standard output.
#[derive(Debug)]
pub struct Report {
    screen: Screen,
}

impl Report {
    /// `is_full`: every frame is drawn, field by field.
    pub fn new(is_full: bool) -> Report {
        Report { screen: Screen::new(if is_full { Detail::Full } else { Detail::Line }) }
    }

    /// The catalogue, a line a case.
    pub fn list(&self) {
        for (title, cases) in PARTS {
            self.screen.line(&self.screen.toned(Tone::Heading, title));
            for case in *cases {
                let own = if case.is_policy() { " (wirechat's own rule)" } else { "" };
                self.screen.line(&format!("  {:<30} {}{own}", case.name, case.what));
            }
            self.screen.line("");
        }
        self.screen.line("wirechat poke CASE [URL] plays one of them, wirechat poke all [URL] all of them.");
    }

    /// Plays one case, and tells all about it. `true`: the answer was right.
    ///
    /// # Errors
    /// A line: nobody listens, or the case makes no sense there.
    pub fn one(&self, target: &Target, case: &Case, patience: Patience) -> Result<bool, String> {
        self.screen.line(&format!("{}: {}", self.screen.toned(Tone::Heading, case.name), case.what));
        let mut exchange = Exchange::default();
        let outcome = target.play(case, patience, &mut |record| exchange.take(&self.screen, &record))?;
        exchange.finish(&self.screen);
        self.screen.line("");
        self.told(case, &outcome).iter().for_each(|line| self.screen.line(line));
        let verdict = judge(case, &outcome);
        self.screen.line(&self.verdict(&verdict));
        Ok(!matches!(verdict, Verdict::Wrong(_)))
    }

    /// Plays all cases that make sense, and tells what came of each in a line. `true`: all answers were right.
    ///
    /// # Errors
    /// A line: nobody listens.
    pub fn all(&self, target: &Target, patience: Patience) -> Result<bool, String> {
        let (mut expected, mut allowed, mut wrong, mut skipped) = (0, 0, 0, 0);
        for (title, cases) in PARTS {
            self.screen.line(&self.screen.toned(Tone::Heading, title));
            for case in *cases {
                let line = |text: &str| self.screen.line(&format!("  {:<30} {text}", case.name));
                if !target.takes(case) {
                    skipped += 1;
                    continue;
                }
                let outcome = match target.play(case, patience, &mut |_| {}) {
                    Ok(outcome) => outcome,
                    Err(error) if expected + allowed + wrong == 0 => return Err(error),
                    Err(error) => {
                        // It listened before.
                        line(&self.screen.toned(Tone::Bad, &format!("NOT as expected: {error}; is the server down?")));
                        return Ok(false);
                    }
                };
                let verdict = judge(case, &outcome);
                line(&self.verdict(&verdict));
                if expected + allowed + wrong == 0 && outcome.inbox.is_empty() {
                    self.screen.line(NOTHING);
                    return Ok(false);
                }
                match verdict {
                    Verdict::Expected => expected += 1,
                    Verdict::Allowed(_) => allowed += 1,
                    Verdict::Wrong(_) => {
                        wrong += 1;
                        self.told(case, &outcome).iter().for_each(|line| self.screen.line(&format!("      {line}")));
                    }
                }
            }
        }
        debug_assert_eq!(expected + allowed + wrong + skipped, catalogue::all().count());
        self.screen.line(&format!(
            "\n{expected} as expected, {allowed} allowed by the RFC, {wrong} not as expected, {skipped} left out"
        ));
        Ok(wrong == 0)
    }

    /// What was expected, what came, and why.
    fn told(&self, case: &Case, outcome: &Outcome) -> [String; 3] {
        let (section, rule) = case.rule;
        [
            format!("expected: {}", verdict::expected(case)),
            format!("came:     {}", verdict::came(outcome)),
            format!("rule:     {section}: {rule}"),
        ]
    }

    fn verdict(&self, verdict: &Verdict) -> String {
        match verdict {
            Verdict::Expected => self.screen.toned(Tone::Good, "as expected"),
            Verdict::Allowed(why) => format!("{}: {why}", self.screen.toned(Tone::Good, "allowed by the RFC")),
            Verdict::Wrong(None) => self.screen.toned(Tone::Bad, "NOT as expected"),
            Verdict::Wrong(Some(fault)) => {
                format!("{}: {}", self.screen.toned(Tone::Bad, "NOT as expected"), escaped(fault))
            }
        }
    }
}

/// The lines of an exchange, of which there may be too many.
#[derive(Debug, Default)]
struct Exchange {
    shown: usize,
    last: VecDeque<String>,
    left_out: u64,
}

impl Exchange {
    fn take(&mut self, screen: &Screen, record: &Record) {
        if let What::Missed(count) = record.what {
            self.left_out += count;
        } else if self.shown < FIRST {
            self.shown += 1;
            screen.line(&screen.drawn(record));
        } else {
            if self.last.len() == LAST {
                self.last.pop_front();
                self.left_out += 1;
            }
            self.last.push_back(screen.drawn(record));
        }
    }

    fn finish(self, screen: &Screen) {
        if self.left_out > 0 {
            screen.line(&format!("… {} more …", self.left_out));
        }
        self.last.iter().for_each(|line| screen.line(line));
    }
}
