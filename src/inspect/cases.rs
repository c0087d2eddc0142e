//! Runs the test cases of `wirechat poke` for inspectors: a client on a helper thread connects to this server, and the
//! inspector receives the records of that connection. The client is a [`CasePlayer`], which `main` supplies. To bound
//! the cost, an inspector runs one case at a time, the server runs only a few cases at once, and an inspector receives
//! only the first frames of a case and any Close.
//!
//! A test case's connection needs no access token, because the inspector that started the case has a ticket, which the
//! server issued to a client that passed the token check. The server recognizes the connection by its client's address
//! and port, which no other process can use while the client's socket is bound.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::SystemTime;

use mio::Token;
use serde_json::{Value, json};

use super::inspection::InspectorLink;

/// Maximum number of test cases that run at the same time. Each test case takes a thread and two file descriptors.
const MAX_RUNNING_CASES: usize = 4;

const NO_PLAYER: &str = "This server plays no cases.";
const MISSING_CASE: &str = "The command names no case. Send {\"do\":\"play\",\"case\":\"hello\"}.";
const ALREADY_PLAYING: &str = "A case is being played already. Wait for its record \"played\".";
const TOO_MANY_RUNNING_CASES: &str = "Other inspectors are playing too many cases already. Try again later.";

/// A client that can run the test cases of `wirechat poke` against this server.
pub trait CasePlayer {
    fn cases(&self) -> Vec<CaseSummary>;

    /// Starts a test case on another thread, and returns the local address of the client's socket. The implementation
    /// must bind the socket before it returns. The thread calls `finish` after it has closed the socket.
    ///
    /// # Errors
    /// Returns a clause that says why the test case cannot run, for example that no case has the name `case`.
    fn start(&self, case: &str, server: SocketAddr, finish: OnFinish) -> Result<SocketAddr, String>;
}

pub type BoxedPlayer = Box<dyn CasePlayer>;

/// Called when a test case finishes, with the result or the reason why the test case has no result.
pub type OnFinish = Box<dyn FnOnce(Result<CaseResult, String>) + Send>;

#[derive(Debug, Clone, Copy)]
pub struct CaseSummary {
    pub name: &'static str,
    pub title: &'static str,
    /// The RFC section that states the rule under test, such as `§5.1`.
    pub rule: &'static str,
}

#[derive(Debug)]
pub struct CaseResult {
    pub expected: String,
    pub received: String,
    /// The RFC section that the case tests, and a summary of the section's rule.
    pub rule: String,
    /// `true` if the server did what the case expects, or something else that an RFC permits, such as declining an
    /// extension.
    pub passed: bool,
}

pub struct PlayOptions {
    pub player: BoxedPlayer,
    pub server: SocketAddr,
    /// Makes the event loop start another turn. A helper thread calls `wake` when its test case is over.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

/// The test cases that are running for inspectors, and the channel that carries their results.
pub struct RunningCases {
    options: Option<PlayOptions>,
    running: Vec<RunningCase>,
    sender: Sender<FinishedCase>,
    finished: Receiver<FinishedCase>,
}

/// A message from a helper thread: the inspector that started the test case, and the result of the test case.
type FinishedCase = (Token, Result<CaseResult, String>);

struct RunningCase {
    inspector: Token,
    case: String,
    link: Rc<InspectorLink>,
    connection: CaseConnection,
    result: Option<Result<CaseResult, String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CaseConnection {
    /// The test case's client has bound its socket to this address, but the server has not accepted the connection yet.
    Expected(SocketAddr),
    Open(Token),
    Removed(Token),
}

impl RunningCases {
    /// `options` contains what is needed to run test cases. If it is `None`, inspectors cannot list or start any.
    pub fn new(options: Option<PlayOptions>) -> RunningCases {
        let (sender, finished) = mpsc::channel();
        RunningCases { options, running: Vec::new(), sender, finished }
    }

    /// Returns the record that lists all test cases; `None` if inspectors cannot run test cases.
    pub fn catalogue(&self) -> Option<Value> {
        let cases = self.options.as_ref()?.player.cases().into_iter();
        let cases = cases.map(|case| json!({ "name": case.name, "title": case.title, "rule": case.rule }));
        Some(json!({ "record": "cases", "cases": cases.collect::<Vec<_>>() }))
    }

    /// Starts a test case. From then on, `inspector` receives the trace records of the test case's connection.
    ///
    /// # Errors
    /// Returns the error text to send to the inspector.
    pub fn start(&mut self, inspector: Token, case: Option<&str>) -> Result<(), String> {
        let PlayOptions { player, server, wake } = self.options.as_ref().ok_or(NO_PLAYER)?;
        let case = case.ok_or(MISSING_CASE)?;
        if self.running.iter().any(|play| play.inspector == inspector) {
            return Err(ALREADY_PLAYING.into());
        }
        if self.running.len() >= MAX_RUNNING_CASES {
            return Err(TOO_MANY_RUNNING_CASES.into());
        }
        let (sender, wake) = (self.sender.clone(), Arc::clone(wake));
        let finish = move |result| {
            let _ = sender.send((inspector, result)); // ignore a send error: it means that the server has stopped
            wake();
        };
        let address = player.start(case, *server, Box::new(finish)).map_err(format_error)?;
        let connection = CaseConnection::Expected(canonicalize(address));
        let (case, link) = (case.to_owned(), Rc::new(InspectorLink::for_test_case(inspector)));
        self.running.push(RunningCase { inspector, case, link, connection, result: None });
        Ok(())
    }

    /// If a test case opened the new connection, returns the link to the test case's inspector; otherwise `None`.
    pub fn accept(&mut self, connection: Token, peer: SocketAddr) -> Option<Rc<InspectorLink>> {
        // Mark finished test cases first. Their clients have closed their sockets, so a new connection from the same
        // address and port may belong to another program.
        self.receive_results();
        let expected = CaseConnection::Expected(canonicalize(peer));
        let play = self.running.iter_mut().find(|play| play.connection == expected && play.result.is_none())?;
        play.connection = CaseConnection::Open(connection);
        Some(Rc::clone(&play.link))
    }

    pub fn contains(&self, connection: Token) -> bool {
        self.running.iter().any(|play| play.connection == CaseConnection::Open(connection))
    }

    /// Handles the removal of a connection, which may belong to a test case, to an inspector or to neither.
    pub fn remove(&mut self, connection: Token) {
        for play in &mut self.running {
            if play.connection == CaseConnection::Open(connection) {
                play.connection = CaseConnection::Removed(connection);
            }
            if play.inspector == connection {
                play.link.inspector.set(None); // the test case continues, but no inspector receives its records
            }
        }
    }

    /// Removes a finished test case, and returns the case's inspector and last record. A test case is finished when its
    /// result has arrived and the server has removed the case's connection, if there was one.
    pub fn next_finished(&mut self, now: SystemTime) -> Option<(Token, Value)> {
        self.receive_results();
        let is_finished =
            |play: &RunningCase| play.result.is_some() && !matches!(play.connection, CaseConnection::Open(_));
        let at = self.running.iter().position(is_finished)?;
        let RunningCase { inspector, case, connection, result, .. } = self.running.swap_remove(at);
        let record = match result? {
            Ok(CaseResult { expected, received, rule, passed }) => json!({
                "record": "played",
                "case": case,
                "expected": expected,
                "came": received,
                "rule": rule,
                "passed": passed,
                "connection": if let CaseConnection::Removed(token) = connection { Some(token.0) } else { None },
                "time": humantime::format_rfc3339_millis(now).to_string(),
            }),
            Err(error) => json!({ "record": "error", "message": format_error(error) }),
        };
        Some((inspector, record))
    }

    fn receive_results(&mut self) {
        while let Ok((inspector, result)) = self.finished.try_recv() {
            match self.running.iter_mut().find(|play| play.inspector == inspector) {
                Some(play) => play.result = Some(result),
                None => debug_assert!(false, "a case is running until its result arrives"),
            }
        }
    }
}

fn format_error(error: String) -> String {
    format!("The case cannot be played: {error}.")
}

/// Converts an IPv4-mapped address (`::ffff:a.b.c.d`) to IPv4, as `Server::accept` does, so that the addresses match.
fn canonicalize(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A fake [`CasePlayer`] that runs nothing: it stores each `OnFinish` callback for the test to call.
    #[derive(Default, Clone)]
    struct FakePlayer(Rc<RefCell<Vec<OnFinish>>>);

    impl CasePlayer for FakePlayer {
        fn cases(&self) -> Vec<CaseSummary> {
            vec![CaseSummary { name: "hello", title: "A greeting", rule: "§1.3" }]
        }

        fn start(&self, case: &str, _: SocketAddr, finish: OnFinish) -> Result<SocketAddr, String> {
            let mut started = self.0.borrow_mut();
            started.push(finish);
            if case == "hello" { Ok(address(started.len() as u16)) } else { Err("it is unknown".into()) }
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), port)
    }

    fn cases_with_fake_player() -> (RunningCases, FakePlayer) {
        let player = FakePlayer::default();
        let options = PlayOptions { player: Box::new(player.clone()), server: address(3000), wake: Arc::new(|| {}) };
        (RunningCases::new(Some(options)), player)
    }

    fn finish(player: &FakePlayer, result: Result<CaseResult, String>) {
        player.0.borrow_mut().remove(0)(result);
    }

    fn passed() -> Result<CaseResult, String> {
        Ok(CaseResult { expected: "a".into(), received: "b".into(), rule: "c".into(), passed: true })
    }

    const ALICE: Token = Token(1);
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn the_result_follows_the_removal_of_the_connection() {
        let (mut plays, player) = cases_with_fake_player();
        plays.start(ALICE, Some("hello")).unwrap();
        assert!(plays.accept(Token(5), address(2)).is_none(), "no case expects a client at this address");
        assert!(plays.accept(Token(6), "[::ffff:127.0.0.1]:1".parse().unwrap()).is_some());
        assert!(plays.accept(Token(7), address(1)).is_none(), "a case expects only one connection");
        assert!(plays.contains(Token(6)) && !plays.contains(Token(7)));
        finish(&player, passed());
        assert_eq!(plays.next_finished(NOW), None);
        plays.remove(Token(6));
        let (inspector, record) = plays.next_finished(NOW).unwrap();
        assert_eq!((inspector, &record["connection"], &record["came"]), (ALICE, &6.into(), &"b".into()));
        assert!(!plays.contains(Token(6)));
    }

    #[test]
    fn an_address_is_not_expected_after_the_result() {
        let (mut plays, player) = cases_with_fake_player();
        plays.start(ALICE, Some("hello")).unwrap();
        finish(&player, Err("the socket failed".into()));
        assert!(plays.accept(Token(5), address(1)).is_none());
        let (_, record) = plays.next_finished(NOW).unwrap();
        assert_eq!(record["message"], "The case cannot be played: the socket failed.");
        plays.start(ALICE, Some("hello")).unwrap();
    }

    #[test]
    fn cases_are_bounded_per_inspector_and_together() {
        let (mut plays, player) = cases_with_fake_player();
        assert_eq!(plays.start(ALICE, Some("x")).unwrap_err(), "The case cannot be played: it is unknown.");
        player.0.borrow_mut().clear();
        for number in 0..MAX_RUNNING_CASES {
            plays.start(Token(number), Some("hello")).unwrap();
        }
        assert_eq!(plays.start(ALICE, Some("hello")).unwrap_err(), ALREADY_PLAYING);
        assert_eq!(plays.start(Token(100), Some("hello")).unwrap_err(), TOO_MANY_RUNNING_CASES);
        finish(&player, passed());
        assert_eq!(plays.next_finished(NOW).unwrap().0, Token(0), "a case can finish without a connection");
        plays.start(Token(100), Some("hello")).unwrap();
    }

    #[test]
    fn case_records_stop_when_their_inspector_leaves() {
        let (mut plays, _player) = cases_with_fake_player();
        plays.start(ALICE, Some("hello")).unwrap();
        let link = plays.accept(Token(5), address(1)).unwrap();
        assert_eq!(link.inspector.get(), Some(ALICE));
        plays.remove(ALICE);
        assert_eq!(link.inspector.get(), None);
    }
}
