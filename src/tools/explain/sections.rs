//! What the sections of RFC 6455 ask of an endpoint, in our own words, and where wirechat obeys them.
//!
//! The RFC is the authority and this is a signpost. Of sections that bind nobody (history, registries, thanks) there is
//! only the title.

/// A section.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its number.
    pub number: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// What it asks.
    pub words: &'static str,
    /// Where in this project's sources; empty if it binds clients or proxies alone.
    pub place: &'static str,
}

const fn section(number: &'static str, title: &'static str, place: &'static str, words: &'static str) -> Section {
    Section { number, title, words, place }
}

/// All of them, in order.
#[rustfmt::skip]
pub const SECTIONS: &[Section] = &[
    section("1.2", "the protocol, an overview", "src/ws/handshake.rs",
        "A handshake that is an HTTP request and its answer, and then messages both ways, each of one frame or several. A \
         frame says whether it is text, binary data, or a control frame such as a Close."),
    section("1.3", "the opening handshake, an overview", "src/ws/handshake.rs",
        "The server proves that it has read the handshake: it puts the GUID 258EAFA5-E914-47DA-95CA-C5AB0DC85B11 behind \
         the client's key, takes the SHA-1 of that, and answers with its base64. It is a proof, not a secret."),
    section("1.4", "the closing handshake, an overview", "src/ws/protocol.rs",
        "Either side sends a Close; the other answers with one. Whoever has sent a Close sends nothing more, and whoever \
         has received one reads nothing more. Either may begin, and both may at once."),
    section("1.9", "subprotocols, an overview", "src/ws/handshake.rs",
        "A client offers names of subprotocols in its order of preference; the server picks one of them, or none."),
    section("3", "URLs", "src/tools/poke/url.rs",
        "ws://host:port/path?query, port 80 if none is given; wss:// is the same inside TLS, port 443. There is no \
         fragment: a # must be written %23."),
    section("4.1", "what a client sends, and checks", "src/tools/poke/request.rs, src/tools/response.rs",
        "A GET of HTTP/1.1 with Host, Upgrade: websocket, Connection: Upgrade, a fresh Sec-WebSocket-Key of 16 random \
         bytes in base64 and Sec-WebSocket-Version: 13. The client fails the connection unless the answer is a 101 with \
         the right Sec-WebSocket-Accept, and with no extension or subprotocol that it did not offer."),
    section("4.2.1", "what a server demands of the request", "src/ws/request.rs, src/ws/handshake.rs",
        "All that 4.1 has the client send. If something is missing or wrong, the server stops and answers with an HTTP \
         error such as 400. Tokens of Upgrade and Connection are compared without regard to letter case."),
    section("4.2.2", "what a server answers", "src/ws/handshake.rs, src/server/routes.rs",
        "101 with Upgrade, Connection and Sec-WebSocket-Accept; or an HTTP answer that says why not: 401, 403 for an \
         origin, 404 for a path, 426 with the versions that it does speak. It may pick one subprotocol and some of the \
         extensions that were offered. From the end of the 101 on, the connection is OPEN."),
    section("4.3", "the grammar of the headers", "src/ws/handshake.rs, src/ws/extension.rs",
        "How the values of the Sec-WebSocket headers are written: lists of tokens, parameters behind semicolons."),
    section("4.4", "more than one version", "src/ws/handshake.rs",
        "A server that does not speak the version asked for says which it does, in Sec-WebSocket-Version, and the client \
         may try again with one of them."),
    section("5.1", "who masks", "src/ws/frame.rs",
        "A client masks every frame, whether or not TLS is used. A server masks none. A server closes the connection when \
         a frame is not masked, a client when one is; 1002 is the code for both."),
    section("5.2", "the header of a frame", "src/ws/frame.rs",
        "FIN, three reserved bits that are 0 without an extension, four bits of opcode; the mask bit, seven bits of \
         length: up to 125 as it is, 126 and then 16 bits, 127 and then 64 bits whose first is 0, always in the shortest \
         form; four bytes of masking key if the mask bit is 1. An unknown opcode fails the connection."),
    section("5.3", "masking", "src/ws/mask.rs",
        "Byte i of the payload is XORed with byte i mod 4 of the key; doing it twice undoes it. The key is fresh for each \
         frame and not to be guessed. The length of the payload does not change."),
    section("5.4", "fragments", "src/ws/protocol.rs, src/ws/message.rs",
        "A message may be cut into frames: the first has the opcode and no FIN, those behind it have opcode 0, the last \
         has FIN. Control frames may come in between and are never cut. Another message may not: one is finished before \
         the next begins. Where a message was cut means nothing."),
    section("5.5", "control frames", "src/ws/frame.rs",
        "Close, Ping and Pong: opcodes 8, 9 and 10. Their payload is at most 125 bytes, and they are never fragmented."),
    section("5.5.1", "Close", "src/ws/close.rs, src/ws/protocol.rs",
        "Its payload is empty, or a code of two bytes and then a reason in UTF-8. Whoever gets one and has sent none \
         answers with one, as a rule with the same code, and may finish a message first. Behind a Close nothing is sent."),
    section("5.5.2", "Ping", "src/ws/protocol.rs",
        "Is answered with a Pong as soon as that is practical, unless a Close has come. Good for keeping a connection \
         alive, and for finding out whether it is."),
    section("5.5.3", "Pong", "src/ws/protocol.rs",
        "Has the very payload of the Ping that it answers. Of several Pings the most recent will do. One that nobody asked \
         for is a sign of life, and gets no answer."),
    section("5.6", "text and binary", "src/ws/message.rs",
        "Text is UTF-8 as a whole; a fragment may end inside a character. Binary is any bytes."),
    section("5.7", "examples", "tests/rfc6455_examples.rs",
        "Seven frames to try: \"Hello\" unmasked is 81 05 48 65 6c 6c 6f, masked it is 81 85 37 fa 21 3d 7f 9f 4d 51 58."),
    section("5.8", "room for extensions", "src/ws/frame.rs",
        "Opcodes 3 to 7 and 11 to 15, the reserved bits and the start of a payload are for extensions. An extension that \
         was not negotiated changes nothing."),
    section("6.1", "sending", "src/ws/frame.rs",
        "Only in state OPEN. A message becomes one frame or several, which are masked if a client sends them."),
    section("6.2", "receiving", "src/ws/reader.rs, src/ws/protocol.rs",
        "Bytes become frames, frames become messages; a server takes the mask off."),
    section("7.1.1", "ending the TCP connection", "src/ws/protocol.rs, src/server/connection.rs",
        "The server ends it first, so that it is the one to wait in TIME_WAIT and the client can come back at once. The \
         client waits for that, and ends it itself only if it takes too long."),
    section("7.1.2", "beginning to close", "src/ws/protocol.rs",
        "An endpoint sends a Close with a code and, if it likes, a reason, once."),
    section("7.1.3", "CLOSING", "src/ws/protocol.rs",
        "The state of a connection on which a Close has been sent or received."),
    section("7.1.4", "CLOSED", "src/ws/protocol.rs",
        "The state once the TCP connection is over: cleanly, if both sides had sent a Close before."),
    section("7.1.5", "the code that an application is told", "src/ws/close.rs",
        "That of the first Close received; 1005 if it had none; 1006 if none came."),
    section("7.1.6", "the reason that an application is told", "src/ws/protocol.rs, src/ws/close.rs",
        "That of the first Close received; empty if it had none."),
    section("7.1.7", "failing the connection", "src/ws/protocol.rs",
        "What to do when a rule was broken: send a Close that says why, unless that is pointless, read no more, and end \
         the TCP connection."),
    section("7.2.1", "when a client ends it", "",
        "When the handshake went wrong, a rule was broken, or the TCP connection is lost, it fails the connection. \
         Otherwise it sends a Close, and leaves the end of the TCP connection to the server."),
    section("7.2.2", "when a server ends it", "src/server/answer.rs",
        "To give up during the opening handshake it just ends the TCP connection; later it sends a Close first."),
    section("7.2.3", "coming back", "client.html",
        "A client that was cut off waits a random while before it tries again, and longer each time."),
    section("7.3", "closing for no special reason", "src/ws/protocol.rs, src/server/shutdown.rs",
        "A server may close whenever it likes; a client should have a reason. Either does it with a Close."),
    section("7.4.1", "codes with a meaning", "src/ws/close.rs",
        "1000 normal, 1001 going away, 1002 protocol error, 1003 a kind of data not taken, 1007 bad data such as text \
         that is no UTF-8, 1008 policy, 1009 too big, 1010 a missing extension, 1011 a fault of the server's. 1005, 1006 \
         and 1015 are never sent. See explain close CODE."),
    section("7.4.2", "ranges of codes", "src/ws/close.rs",
        "0–999 are not used, 1000–2999 are the protocol's, 3000–3999 are registered for libraries and applications, \
         4000–4999 are for private use."),
    section("8.1", "text that is no UTF-8", "src/ws/message.rs, src/ws/close.rs",
        "Fails the connection, in a message as in the reason of a Close. 1007 is the code for it."),
    section("9.1", "negotiating extensions", "src/ws/extension.rs",
        "A client offers extensions with parameters; the server takes some, or none. A list that breaks the grammar fails \
         the handshake. What was not negotiated is not used."),
    section("9.2", "known extensions", "",
        "The RFC defines none. The one in use, permessage-deflate, is RFC 7692, and wirechat declines it."),
    section("10.1", "clients that are no browsers", "src/chat/access.rs",
        "They can send any Origin, or none. An Origin protects a browser's user from other pages, not a server from its \
         clients."),
    section("10.2", "the origin", "src/chat/access.rs",
        "A server that is not meant for every page checks Origin, and refuses with 403 those it does not expect. Any page \
         can open a connection to any server."),
    section("10.3", "why masking", "src/ws/mask.rs",
        "A page could make its browser send bytes that a careless proxy takes for HTTP, and caches. With a key that the \
         page cannot know it does not choose what is on the wire. Once a frame is on its way its payload must not change: a \
         page that has seen the key could choose the rest."),
    section("10.4", "limits", "src/ws/protocol.rs, src/config.rs",
        "An endpoint that has limits, to a frame, a message or anything else, protects itself against those who exceed \
         them."),
    section("10.5", "who the client is", "src/chat/access.rs",
        "The protocol does not say. A server uses what HTTP has: cookies, Authorization, TLS."),
    section("10.6", "secrecy", "",
        "Who wants it uses wss://, and gets what TLS gives. Masking is no encryption."),
    section("10.7", "bad data", "src/ws/close.rs, src/ws/protocol.rs",
        "Both sides check what they get, at any time, and may close the connection. What is in a message is the \
         application's to distrust."),
    section("10.8", "SHA-1", "src/ws/handshake.rs",
        "The accept value does not need SHA-1 to be secure: it only shows that the request was understood."),
    section("11.3.1", "Sec-WebSocket-Key", "src/ws/handshake.rs",
        "Once in a request, never in an answer."),
    section("11.3.2", "Sec-WebSocket-Extensions", "src/ws/handshake.rs, src/ws/extension.rs",
        "As often as one likes in a request, which is one list; in an answer once, with what was taken."),
    section("11.3.3", "Sec-WebSocket-Accept", "src/ws/handshake.rs",
        "Once in an answer, never in a request."),
    section("11.3.4", "Sec-WebSocket-Protocol", "src/ws/handshake.rs",
        "As often as one likes in a request, which is one list; in an answer once, with the one that was picked."),
    section("11.3.5", "Sec-WebSocket-Version", "src/ws/handshake.rs",
        "Once in a request, with one number. In an answer that refuses, it may name several."),
    section("11.7", "the registry of close codes", "src/ws/close.rs",
        "IANA keeps a list of the codes from 1000 to 3999. See explain close."),
];

/// The others, which ask nothing of anybody.
#[rustfmt::skip]
const UNBINDING: &[(&str, &str)] = &[
    ("1.1", "background"),
    ("1.5", "the philosophy of the design"),
    ("1.6", "the model of security"),
    ("1.7", "TCP and HTTP"),
    ("1.8", "establishing a connection"),
    ("2", "how the RFC is to be read"),
    ("2.1", "terms and conventions"),
    ("11.1", "the registration of URI schemes"),
    ("11.1.1", "the registration of ws"),
    ("11.1.2", "the registration of wss"),
    ("11.2", "the registration of websocket in Upgrade"),
    ("11.4", "the registry of extensions"),
    ("11.5", "the registry of subprotocols"),
    ("11.6", "the registry of versions"),
    ("11.8", "the registry of opcodes"),
    ("11.9", "the registry of the reserved bits"),
    ("12", "other specifications that use the protocol"),
    ("13", "thanks"),
    ("14", "references"),
];

/// The title of a section that binds nobody.
pub fn unbinding(number: &str) -> Option<&'static str> {
    UNBINDING.iter().find(|(found, _)| *found == number).map(|(_, title)| *title)
}

/// The sections that `asked` names: itself, and those below it.
pub fn find(asked: &str) -> Vec<&'static Section> {
    let below = format!("{asked}.");
    SECTIONS.iter().filter(|section| section.number == asked || section.number.starts_with(&below)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_place_is_there() {
        for section in SECTIONS {
            for place in section.place.split(", ").filter(|place| !place.is_empty()) {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(place).is_file(), "{place} of §{}", section.number);
            }
        }
    }

    #[test]
    fn sections_stand_in_order_and_once() {
        let number = |section: &Section| section.number.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        assert!(SECTIONS.is_sorted_by(|a, b| number(a) < number(b)));
        assert_eq!(find("5.5").iter().map(|s| s.number).collect::<Vec<_>>(), ["5.5", "5.5.1", "5.5.2", "5.5.3"]);
        assert!(find("5.5.").is_empty() && find("5.9").is_empty());
    }
}
