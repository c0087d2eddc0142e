//! HTTP for test clients: a builder of valid and invalid requests, and a parser of responses.

use super::{KEY, RawClient, Server};

/// An HTTP request that a test builds. Most tests start from a valid request and change only the detail that they test.
#[derive(Clone)]
pub struct Request {
    method: &'static str,
    target: String,
    version: &'static str,
    headers: Vec<Vec<u8>>,
    trailing: Vec<u8>,
}

/// A valid upgrade request: everything that RFC 6455 §4.2.1 requires, and a demo token.
pub fn handshake() -> Request {
    let request = get("/?token=dev-token&username=bot&room=general");
    request
        .add("Upgrade: websocket")
        .add("Connection: Upgrade")
        .add(format!("Sec-WebSocket-Key: {KEY}"))
        .add("Sec-WebSocket-Version: 13")
}

/// A GET request with no header but `Host`.
pub fn get(target: &str) -> Request {
    let (method, version) = ("GET", "HTTP/1.1");
    Request { method, target: target.into(), version, headers: vec![], trailing: vec![] }.add("Host: 127.0.0.1")
}

impl Request {
    pub fn method(mut self, method: &'static str) -> Request {
        self.method = method;
        self
    }

    pub fn target(mut self, target: impl Into<String>) -> Request {
        self.target = target.into();
        self
    }

    pub fn path(&self) -> &str {
        &self.target
    }

    pub fn version(mut self, version: &'static str) -> Request {
        self.version = version;
        self
    }

    /// Adds a header line, even if the request already has a header with the same name.
    pub fn add(mut self, header: impl AsRef<[u8]>) -> Request {
        self.headers.push(header.as_ref().to_vec());
        self
    }

    /// Replaces the header line that has the same name as `header`. Panics if there is none.
    pub fn set(self, header: &str) -> Request {
        let name = header.split(':').next().unwrap_or(header);
        self.without(name).add(header)
    }

    pub fn without(mut self, name: &str) -> Request {
        let prefix = format!("{name}:").into_bytes();
        let before = self.headers.len();
        self.headers.retain(|line| !line.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(&prefix)));
        assert!(self.headers.len() < before, "there is a {name} to remove");
        self
    }

    /// Appends bytes after the head, such as a body.
    pub fn followed_by(mut self, bytes: impl AsRef<[u8]>) -> Request {
        self.trailing.extend_from_slice(bytes.as_ref());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} {}\r\n", self.method, self.target, self.version).into_bytes();
        for header in &self.headers {
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.trailing);
        bytes
    }

    /// Pads the request with one header line to `len` bytes.
    pub fn padded_to(self, len: usize) -> Request {
        let missing = len - self.bytes().len() - "X-Pad: \r\n".len();
        self.add(format!("X-Pad: {}", "x".repeat(missing)))
    }
}

impl From<Request> for Vec<u8> {
    fn from(request: Request) -> Vec<u8> {
        request.bytes()
    }
}

/// A response. `body` contains all bytes after the head.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Sends a request and reads the complete response. A response with status 101 has no body.
pub fn response(server: &Server, request: &Request) -> Response {
    let mut client = server.connect();
    client.send(&request.bytes());
    let response = Response::parse(client.read_head().as_bytes());
    let body = if response.status == 101 { Vec::new() } else { client.read_to_clean_end() };
    Response { body: String::from_utf8(body).unwrap(), ..response }
}

impl Response {
    /// Parses a response. Its lines must end in CRLF (RFC 9112 §2.1).
    pub fn parse(bytes: &[u8]) -> Response {
        let text = String::from_utf8(bytes.to_vec()).expect("a response is UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no complete head: {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect("a status line");
        let status = status.split(' ').next().and_then(|code| code.parse().ok()).expect("a status");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header line: {line:?}"));
            (name.to_owned(), value.to_owned())
        };
        Response { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    /// The value of a header; empty if the header is absent. Panics if the header occurs twice.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map_or("", |(_, value)| value);
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }

    /// The elements of a header's comma-separated list, in lower case.
    pub fn list(&self, name: &str) -> Vec<String> {
        let members = self.header(name).split(',').map(|member| member.trim().to_ascii_lowercase());
        members.filter(|member| !member.is_empty()).collect()
    }
}

impl Server {
    /// Sends a request on a new connection and returns the status code of the response.
    pub fn status(&self, request: &Request) -> u16 {
        let mut client = self.connect();
        client.send(&request.bytes());
        Response::parse(client.read_head().as_bytes()).status
    }
}

impl RawClient {
    /// Reads until the server ends the stream. A TCP reset fails the test, because a reset can destroy bytes that
    /// the client has not read yet.
    pub fn read_to_clean_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut self.stream, &mut all).expect("the stream ends without a reset");
        all
    }

    /// Reads a complete response. The server must close the connection after the response.
    pub fn read_response(&mut self) -> Response {
        Response::parse(&self.read_to_clean_end())
    }
}
