//! Prints a test case: the exchange as it happens, then what the case expects, what the server sent, the rule and the
//! verdict. A server might send forever, so `poke` prints only the first and last records of an exchange.

use std::collections::VecDeque;

use super::Target;
use super::case::Case;
use super::catalogue::{self, GROUPS};
use super::check::{Verdict, check, describe_expected, describe_received};
use super::play::{Timing, Transcript};
use crate::inspect::text::Detail;
use crate::inspect::{Record, RecordKind};
use crate::tools::screen::{Screen, Tone, escape};

/// `poke` prints up to this many records of an exchange as they arrive.
const MAX_FIRST_RECORDS: usize = 30;
/// When an exchange ends, `poke` prints at most this many of the records that it has not printed yet: the newest ones.
const MAX_LAST_RECORDS: usize = 10;
const NO_RESPONSE: &str = "The server sent nothing at all, so the other cases are skipped. Is it a WebSocket server?";

#[derive(Debug)]
pub struct Report {
    screen: Screen,
}

#[derive(Debug, Default)]
struct Counts {
    expected: usize,
    allowed: usize,
    unexpected: usize,
    skipped: usize,
}

impl Counts {
    fn count_played(&self) -> usize {
        self.expected + self.allowed + self.unexpected
    }
}

impl Report {
    /// Creates a report that prints to standard output. If `is_full` is true, the report draws frames field by field.
    pub fn new(is_full: bool) -> Report {
        Report { screen: Screen::new(if is_full { Detail::Full } else { Detail::Line }) }
    }

    pub fn print_cases(&self) {
        for (title, cases) in GROUPS {
            self.screen.print(&self.screen.paint(Tone::Heading, title));
            for case in *cases {
                let own = if case.is_wirechat_rule() { " (wirechat only)" } else { "" };
                self.screen.print(&format!("  {:<30} {}{own}", case.name, case.summary));
            }
            self.screen.print("");
        }
        self.screen.print("wirechat poke CASE [URL] runs one of them, wirechat poke all [URL] runs all.");
    }

    /// Runs one test case and prints all details. Returns `true` if the result is expected or allowed.
    pub fn run_case(&self, target: &Target, case: &Case, timing: Timing) -> Result<bool, String> {
        self.screen.print(&format!("{}: {}", self.screen.paint(Tone::Heading, case.name), case.summary));
        let mut exchange = Exchange::default();
        let transcript = target.play(case, timing, &mut |record| exchange.add(&self.screen, &record))?;
        exchange.finish(&self.screen);
        self.screen.print("");
        format_details(case, &transcript).iter().for_each(|line| self.screen.print(line));
        let verdict = check(case, &transcript);
        self.screen.print(&self.describe(&verdict));
        Ok(!matches!(verdict, Verdict::Unexpected(_)))
    }

    /// Runs all test cases that apply to the server. Returns `true` if all of them ran and every result is expected or
    /// allowed.
    pub fn play_all(&self, target: &Target, timing: Timing) -> Result<bool, String> {
        let mut counts = Counts::default();
        for (title, cases) in GROUPS {
            self.screen.print(&self.screen.paint(Tone::Heading, title));
            for case in *cases {
                if !self.play_and_print(target, case, timing, &mut counts)? {
                    return Ok(false);
                }
            }
        }
        debug_assert_eq!(counts.count_played() + counts.skipped, catalogue::all_cases().count());
        let Counts { expected, allowed, unexpected, skipped } = counts;
        self.screen.print(&format!(
            "\n{expected} as expected, {allowed} allowed by the RFC, {unexpected} not as expected, {skipped} skipped"
        ));
        Ok(unexpected == 0)
    }

    /// Runs a test case and prints its verdict. Returns `false` if the server is silent or down, to end the run.
    fn play_and_print(
        &self,
        target: &Target,
        case: &Case,
        timing: Timing,
        counts: &mut Counts,
    ) -> Result<bool, String> {
        if !target.supports(case) {
            counts.skipped += 1;
            return Ok(true);
        }
        let line = |text: &str| self.screen.print(&format!("  {:<30} {text}", case.name));
        let is_first = counts.count_played() == 0;
        let transcript = match target.play(case, timing, &mut |_| {}) {
            Ok(transcript) => transcript,
            Err(error) if is_first => return Err(error),
            // The server was reachable before, so the previous test case may have crashed it.
            Err(error) => {
                line(&self.screen.paint(Tone::Bad, &format!("NOT as expected: {error}; is the server down?")));
                return Ok(false);
            }
        };
        let verdict = check(case, &transcript);
        line(&self.describe(&verdict));
        if is_first && transcript.inbox.is_empty() {
            self.screen.print(NO_RESPONSE);
            return Ok(false);
        }
        match verdict {
            Verdict::Expected => counts.expected += 1,
            Verdict::Allowed(_) => counts.allowed += 1,
            Verdict::Inapplicable(_) => counts.skipped += 1,
            Verdict::Unexpected(_) => {
                counts.unexpected += 1;
                format_details(case, &transcript).iter().for_each(|line| self.screen.print(&format!("      {line}")));
            }
        }
        Ok(true)
    }

    fn describe(&self, verdict: &Verdict) -> String {
        match verdict {
            Verdict::Expected => self.screen.paint(Tone::Good, "as expected"),
            Verdict::Allowed(sentence) => {
                format!("{}: {sentence}", self.screen.paint(Tone::Good, "allowed by the RFC"))
            }
            Verdict::Inapplicable(reason) => format!("not applicable: {reason}"),
            Verdict::Unexpected(None) => self.screen.paint(Tone::Bad, "NOT as expected"),
            Verdict::Unexpected(Some(violation)) => {
                format!("{}: {}", self.screen.paint(Tone::Bad, "NOT as expected"), escape(violation))
            }
        }
    }
}

fn format_details(case: &Case, transcript: &Transcript) -> [String; 3] {
    let (section, rule) = case.rule;
    [
        format!("expected: {}", describe_expected(case)),
        format!("received: {}", describe_received(transcript)),
        format!("rule:     {section}: {rule}"),
    ]
}

/// Prints the first records of a connection immediately, keeps the last records, and counts the records in between.
#[derive(Debug, Default)]
struct Exchange {
    shown: usize,
    last: VecDeque<String>,
    skipped: u64,
}

impl Exchange {
    fn add(&mut self, screen: &Screen, record: &Record) {
        if let RecordKind::Missed(count) = record.kind {
            self.skipped += count;
        } else if self.shown < MAX_FIRST_RECORDS {
            self.shown += 1;
            screen.print(&screen.format_record(record));
        } else {
            if self.last.len() == MAX_LAST_RECORDS {
                self.last.pop_front();
                self.skipped += 1;
            }
            self.last.push_back(screen.format_record(record));
        }
    }

    fn finish(self, screen: &Screen) {
        if self.skipped > 0 {
            screen.print(&format!("… {} more …", self.skipped));
        }
        self.last.iter().for_each(|line| screen.print(line));
    }
}
