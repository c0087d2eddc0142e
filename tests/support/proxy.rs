//! A TCP proxy between the page and the server that can break a connection while both ends stay alive. The
//! alternatives do not simulate a broken network: an offline browser keeps its open WebSockets, and a stopped server
//! disconnects every client.
#![allow(dead_code)] // each test binary uses only part of this module

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq)]
enum State {
    Whole,
    /// The proxy drops bytes from the server, and forwards bytes from the client.
    OneWay,
    /// The proxy forwards no bytes, and closes new connections at once.
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
        // The thread runs until the process ends.
        std::thread::spawn(move || listener.incoming().flatten().for_each(|client| join(client, server, &shared)));
        Proxy { addr, line }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Drops everything that the server sends from now on.
    pub fn drop_responses(&self) {
        self.line.lock().unwrap().state = State::OneWay;
    }

    pub fn cut(&self) {
        let mut line = self.line.lock().unwrap();
        line.state = State::Cut;
        for stream in line.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn restore(&self) {
        self.line.lock().unwrap().state = State::Whole;
    }
}

/// Connects a client to the server. Holds the lock while connecting, so that `cut` misses no new connection.
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
        std::thread::spawn(move || forward(from, to, &line));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, line: &Mutex<Line>) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if line.lock().unwrap().state == State::Whole && to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
