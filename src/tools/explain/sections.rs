//! The sections of RFC 6455, with a summary of their rules for endpoints and the files that implement these rules. The
//! RFC is authoritative. Sections without rules, such as background and references, have only a title.

#[derive(Debug, Clone, Copy)]
pub struct Section {
    pub number: &'static str,
    pub title: &'static str,
    pub text: &'static str,
    /// The files that implement the section, separated by `, `; empty if no file does.
    pub files: &'static str,
}

impl Section {
    const fn new(number: &'static str, title: &'static str, files: &'static str, text: &'static str) -> Section {
        Section { number, title, text, files }
    }
}

/// The sections of RFC 6455 that have a summary, in the order of the RFC.
#[rustfmt::skip]
pub const SECTIONS: &[Section] = &[
    Section::new("1.2", "overview of the protocol", "src/ws/handshake.rs",
        "The connection starts with a handshake, an HTTP request and its response. Then both endpoints send messages. A \
         message is one frame or several. A frame is text, binary data, or a control frame such as a Close."),
    Section::new("1.3", "overview of the opening handshake", "src/ws/handshake.rs",
        "The server proves that it understood the handshake: it appends the GUID 258EAFA5-E914-47DA-95CA-C5AB0DC85B11 to \
         the client's key, computes the SHA-1, and sends its base64. This is a proof, not a secret."),
    Section::new("1.4", "overview of the closing handshake", "src/ws/protocol.rs",
        "One endpoint sends a Close, the other replies with a Close. After sending a Close, an endpoint sends nothing more; \
         after receiving one, it discards what follows. Either endpoint may start, and both may start at once."),
    Section::new("1.9", "overview of subprotocols", "src/ws/handshake.rs",
        "A client offers names of subprotocols in its order of preference. The server selects one of them, or none."),
    Section::new("3", "URLs", "src/tools/url.rs",
        "ws://host:port/path?query, with port 80 by default. wss:// is the same inside TLS, with port 443. There is no \
         fragment: a # must be written as %23."),
    Section::new("4.1", "client requirements", "src/tools/poke/request.rs, src/tools/inbox.rs",
        "A GET of HTTP/1.1 with Host, Upgrade: websocket, Connection: Upgrade, a fresh Sec-WebSocket-Key (base64 of 16 \
         random bytes) and Sec-WebSocket-Version: 13. The client fails the connection unless the response is a 101 with \
         the right Sec-WebSocket-Accept, and without an extension or subprotocol that was not offered."),
    Section::new("4.2.1", "reading the client's handshake", "src/ws/request.rs, src/ws/handshake.rs",
        "A request must have all that section 4.1 demands. If something is missing or wrong, the server stops and responds \
         with an HTTP error such as 400. The tokens of Upgrade and Connection are compared case-insensitively."),
    Section::new("4.2.2", "sending the server's handshake", "src/ws/handshake.rs, src/http/mod.rs",
        "The server sends 101 with Upgrade, Connection and Sec-WebSocket-Accept, or rejects the request: 401, 403 for an \
         origin, 404 for a path, 426 with the versions that it supports. It may select one offered subprotocol and some \
         offered extensions. The connection is OPEN from the end of the 101 on."),
    Section::new("4.3", "grammar of the handshake headers", "src/ws/handshake.rs, src/ws/extension.rs",
        "The syntax of the Sec-WebSocket headers: lists of tokens, with parameters after semicolons."),
    Section::new("4.4", "several protocol versions", "src/ws/handshake.rs",
        "A server that does not support the requested version lists those that it supports in Sec-WebSocket-Version. The \
         client may retry with one of them."),
    Section::new("5.1", "masking by role", "src/ws/frame.rs",
        "A client masks every frame, with or without TLS. A server masks no frame. Each endpoint closes the connection when \
         the other breaks this rule; 1002 is the code for it."),
    Section::new("5.2", "base framing protocol", "src/ws/frame.rs",
        "The header of a frame: FIN, three reserved bits (0 without an extension), four bits of opcode; the mask bit, \
         seven bits of length: up to 125 directly, 126 followed by 16 bits, 127 followed by 64 bits of which the first is \
         0, always in the shortest form; a masking key of four bytes if the mask bit is 1. An unknown opcode fails the \
         connection."),
    Section::new("5.3", "client-to-server masking", "src/ws/mask.rs",
        "Byte i of the payload is XORed with byte i mod 4 of the masking key; doing it twice restores the payload. The \
         key is fresh for each frame and unpredictable. Masking does not change the length of the payload."),
    Section::new("5.4", "fragmentation", "src/ws/protocol.rs, src/ws/message.rs",
        "A message may be split into frames: the first has the opcode and no FIN, the others have opcode 0, the last has \
         FIN. Control frames may come between them and are never fragmented. Another message may not: a message is \
         finished before the next one starts. Where a message is split has no meaning."),
    Section::new("5.5", "control frames", "src/ws/frame.rs",
        "Close, Ping and Pong: opcodes 8, 9 and 10. Their payload is at most 125 bytes, and they are never fragmented."),
    Section::new("5.5.1", "Close", "src/ws/close.rs, src/ws/protocol.rs",
        "The payload is empty, or a code of two bytes and a reason in UTF-8. An endpoint that receives a Close and has sent \
         none replies with one, typically with the same code. It may finish a message first. After a Close it sends \
         nothing."),
    Section::new("5.5.2", "Ping", "src/ws/protocol.rs",
        "An endpoint replies with a Pong as soon as practical, unless it has received a Close. Pings keep a connection \
         alive, and show whether the other endpoint still is."),
    Section::new("5.5.3", "Pong", "src/ws/protocol.rs",
        "A Pong has the payload of the Ping that it replies to. Of several Pings, only the most recent needs a Pong. An \
         unsolicited Pong is a heartbeat, and gets no reply."),
    Section::new("5.6", "data frames", "src/ws/message.rs",
        "A text message is UTF-8 as a whole; a fragment may end inside a character. A binary message is any bytes."),
    Section::new("5.7", "examples", "tests/rfc6455_examples.rs",
        "Seven frames to try: \"Hello\" unmasked is 81 05 48 65 6c 6c 6f, masked it is 81 85 37 fa 21 3d 7f 9f 4d 51 58."),
    Section::new("5.8", "extensibility", "src/ws/frame.rs",
        "Opcodes 3 to 7 and 11 to 15, the reserved bits and the start of a payload are for extensions. An extension that \
         was not negotiated changes nothing."),
    Section::new("6.1", "sending data", "src/ws/frame.rs",
        "Only in state OPEN. A message becomes one frame or several, which a client masks."),
    Section::new("6.2", "receiving data", "src/ws/reader.rs, src/ws/protocol.rs",
        "Bytes become frames, frames become messages. A server removes the mask."),
    Section::new("7.1.1", "close the WebSocket connection", "src/ws/protocol.rs, src/server/connection.rs",
        "The server ends TCP first, so that the server and not the client holds the TIME_WAIT state, and the client can \
         reconnect at once. The client waits for that, and ends TCP itself only after a timeout."),
    Section::new("7.1.2", "start the closing handshake", "src/ws/protocol.rs",
        "An endpoint sends one Close, with a code and perhaps a reason."),
    Section::new("7.1.3", "the closing handshake is started", "src/ws/protocol.rs",
        "A connection is CLOSING once a Close has been sent or received."),
    Section::new("7.1.4", "the connection is closed", "src/ws/protocol.rs",
        "A connection is CLOSED once TCP has ended. It was closed cleanly if both endpoints had sent a Close."),
    Section::new("7.1.5", "the connection close code", "src/ws/close.rs",
        "An application sees the code of the first Close received; 1005 if that had none; 1006 if no Close arrived."),
    Section::new("7.1.6", "the connection close reason", "src/ws/protocol.rs, src/ws/close.rs",
        "An application sees the reason of the first Close received; empty if that had none."),
    Section::new("7.1.7", "fail the connection", "src/ws/protocol.rs",
        "After a broken rule, an endpoint sends a Close that names the reason, unless that is pointless, reads no more \
         and ends TCP."),
    Section::new("7.2.1", "client-initiated closure", "",
        "A client fails the connection when the handshake is wrong, a rule is broken, or TCP is lost. Otherwise it sends a \
         Close and leaves the end of TCP to the server."),
    Section::new("7.2.2", "server-initiated closure", "src/http/mod.rs",
        "During the opening handshake a server just ends TCP. Later it sends a Close first."),
    Section::new("7.2.3", "recovering from abnormal closure", "client.html",
        "After a lost connection a client waits a random delay before it reconnects, and longer each time."),
    Section::new("7.3", "normal closure", "src/ws/protocol.rs, src/server/lifecycle.rs",
        "A server may close whenever it likes; a client should have a reason. Either sends a Close."),
    Section::new("7.4.1", "defined status codes", "src/ws/close.rs",
        "1000 normal, 1001 going away, 1002 protocol error, 1003 unsupported type of data, 1007 invalid data such as text \
         that is not UTF-8, 1008 policy, 1009 too big, 1010 missing extension, 1011 server error. 1005, 1006 and 1015 are \
         never sent. See explain close CODE."),
    Section::new("7.4.2", "reserved status code ranges", "src/ws/close.rs",
        "0–999 are not used, 1000–2999 belong to the protocol, 3000–3999 are registered for libraries and applications, \
         4000–4999 are for private use."),
    Section::new("8.1", "errors in UTF-8", "src/ws/message.rs, src/ws/close.rs",
        "Text that is not UTF-8 fails the connection, in a message and in the reason of a Close. 1007 is the code for it."),
    Section::new("9.1", "negotiating extensions", "src/ws/extension.rs",
        "A client offers extensions with parameters; the server accepts some, or none. A list that breaks the grammar fails \
         the handshake. An extension that was not negotiated is not used."),
    Section::new("9.2", "known extensions", "",
        "The RFC defines none. The common one, permessage-deflate, is RFC 7692."),
    Section::new("10.1", "non-browser clients", "src/http/access.rs",
        "They can send any Origin, or none. Checking the Origin protects a browser's user from other pages, not a server \
         from its clients."),
    Section::new("10.2", "origin considerations", "src/http/access.rs",
        "Any page can open a connection to any server. A server that is not meant for every page checks Origin, and rejects \
         unexpected ones with 403."),
    Section::new("10.3", "attacks on infrastructure: why frames are masked", "src/ws/mask.rs",
        "A page could make its browser send bytes that a careless proxy takes for HTTP and caches. With a masking key that \
         the page cannot predict, it does not control the bytes on the wire. Once a frame is being sent, its payload must \
         not change: a page that has seen the key could choose the rest."),
    Section::new("10.4", "implementation-specific limits", "src/ws/protocol.rs, src/config.rs",
        "An endpoint with limits, to a frame, a message or anything else, protects itself against peers that exceed them."),
    Section::new("10.5", "client authentication", "src/http/access.rs",
        "The protocol defines none. A server uses what HTTP has: cookies, Authorization, TLS."),
    Section::new("10.6", "confidentiality and integrity", "",
        "wss:// provides what TLS provides. Masking is not encryption."),
    Section::new("10.7", "invalid data", "src/ws/close.rs, src/ws/protocol.rs",
        "Both endpoints validate what they receive, at any time, and may close the connection. The content of messages is for \
         the application to validate."),
    Section::new("10.8", "use of SHA-1", "src/ws/handshake.rs",
        "The accept value does not depend on the security of SHA-1: it only shows that the server understood the request."),
    Section::new("11.3.1", "Sec-WebSocket-Key", "src/ws/handshake.rs",
        "Once in a request, never in a response."),
    Section::new("11.3.2", "Sec-WebSocket-Extensions", "src/ws/handshake.rs, src/ws/extension.rs",
        "Any number of times in a request, read as one list; once in a response, with the accepted extensions."),
    Section::new("11.3.3", "Sec-WebSocket-Accept", "src/ws/handshake.rs",
        "Once in a response, never in a request."),
    Section::new("11.3.4", "Sec-WebSocket-Protocol", "src/ws/handshake.rs",
        "Any number of times in a request, read as one list; once in a response, with the selected subprotocol."),
    Section::new("11.3.5", "Sec-WebSocket-Version", "src/ws/handshake.rs",
        "Once in a request, with one number. In a rejection it may list several."),
    Section::new("11.7", "the close code registry", "src/ws/close.rs",
        "IANA registers the codes from 1000 to 3999. See explain close."),
];

/// The numbers and titles of the sections of RFC 6455 that have no rules for endpoints.
#[rustfmt::skip]
const INFORMATIVE_SECTIONS: &[(&str, &str)] = &[
    ("1.1", "background"),
    ("1.5", "design philosophy"),
    ("1.6", "security model"),
    ("1.7", "relationship to TCP and HTTP"),
    ("1.8", "establishing a connection"),
    ("2", "conformance requirements"),
    ("2.1", "terminology and other conventions"),
    ("11.1", "registration of URI schemes"),
    ("11.1.1", "registration of the ws scheme"),
    ("11.1.2", "registration of the wss scheme"),
    ("11.2", "registration of the websocket upgrade token"),
    ("11.4", "the extension name registry"),
    ("11.5", "the subprotocol name registry"),
    ("11.6", "the version number registry"),
    ("11.8", "the opcode registry"),
    ("11.9", "the framing header bits registry"),
    ("12", "using the WebSocket protocol from other specifications"),
    ("13", "acknowledgements"),
    ("14", "references"),
];

pub fn informative_title(number: &str) -> Option<&'static str> {
    INFORMATIVE_SECTIONS.iter().find(|(found, _)| *found == number).map(|(_, title)| *title)
}

/// Finds a section of RFC 6455 and its subsections by the section's number.
pub fn find_sections(asked: &str) -> Vec<&'static Section> {
    let prefix = format!("{asked}.");
    SECTIONS.iter().filter(|section| section.number == asked || section.number.starts_with(&prefix)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_exists() {
        for section in SECTIONS {
            for file in section.files.split(", ").filter(|file| !file.is_empty()) {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).is_file(), "{file} of §{}", section.number);
            }
        }
    }

    #[test]
    fn sections_are_in_order_and_unique() {
        let number = |section: &Section| section.number.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        assert!(SECTIONS.is_sorted_by(|a, b| number(a) < number(b)));
        assert_eq!(
            find_sections("5.5").iter().map(|s| s.number).collect::<Vec<_>>(),
            ["5.5", "5.5.1", "5.5.2", "5.5.3"]
        );
        assert!(find_sections("5.5.").is_empty() && find_sections("5.9").is_empty());
    }
}
