//! A line that can be broken: it stands between the page and the server, and passes bytes on for as long as it is told.
//!
//! A browser that is told to be offline leaves its open WebSockets alone, and a server that is stopped takes everybody
//! with it. Here one line breaks, and both ends live.
#![allow(dead_code)] // each test binary uses its own part

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq)]
enum State {
    Whole,
    /// What the server says is lost; what the client says arrives.
    Deaf,
    /// Nothing is passed on, and nobody new is let through.
    Cut,
}

struct Line {
    state: State,
    streams: Vec<TcpStream>,
}

pub struct Proxy {
    addr: SocketAddr,
    line: Arc<Mutex<Line>>,
}

impl Proxy {
    pub fn to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let line = Arc::new(Mutex::new(Line { state: State::Whole, streams: Vec::new() }));
        let shared = Arc::clone(&line);
        // It ends with the process.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|client| join(client, server, &shared)));
        Proxy { addr, line }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    pub fn deafen(&self) {
        self.line.lock().unwrap().state = State::Deaf;
    }

    pub fn cut(&self) {
        let mut line = self.line.lock().unwrap();
        line.state = State::Cut;
        for stream in line.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.line.lock().unwrap().state = State::Whole;
    }
}

/// Under the lock, so that no client slips through while the line is cut.
fn join(client: TcpStream, server: SocketAddr, shared: &Arc<Mutex<Line>>) {
    let mut line = shared.lock().unwrap();
    if line.state == State::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server) else {
        return;
    };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
    line.streams.extend([clone(&client), clone(&server)]);
    let (up, down) = ((clone(&client), clone(&server)), (server, client));
    let always = Arc::new(Mutex::new(Line { state: State::Whole, streams: Vec::new() }));
    for ((from, to), line) in [(up, always), (down, Arc::clone(shared))] {
        std::thread::spawn(move || pass_on(from, to, &line));
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, line: &Mutex<Line>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if line.lock().unwrap().state == State::Whole && to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
