//! Runs `wirechat explain`, and checks its exact output and its exit code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use wirechat::tools::{explain::sections, poke::catalogue};
use wirechat::ws::close::ProtocolError;
use wirechat::ws::handshake::accept_value;

/// Runs `wirechat explain` with `args`, and writes `input` to its standard input.
fn explain(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wirechat"))
        .arg("explain")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Ignore a broken pipe: the program may exit without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().expect("the program ends")
}

/// Runs `wirechat explain`, and checks the exit code. Returns the output, or the error message if the code is 2.
fn output_of(args: &[&str], input: &[u8], code: i32) -> String {
    let output = explain(args, input);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
    assert!(!out.contains('\x1b'), "no color in a pipe");
    match code {
        2 => {
            assert_eq!((out.as_str(), err.lines().count()), ("", 1), "one line: {err}");
            err.strip_prefix("wirechat: ").expect("the name of the program").to_owned()
        }
        _ => {
            assert_eq!(err, "");
            out
        }
    }
}

fn output(args: &str, code: i32) -> String {
    let args: Vec<&str> = args.split(' ').collect();
    output_of(&args, b"", code)
}

const HELLO: &str = "\
→ TEXT  fin mask=37fa213d len=5 (7-bit)  \"Hello\"                       §5.2 §5.3
  81          85             37 fa 21 3d   7f 9f 4d 51 58
  FIN opcode  MASK length=5  masking key   payload, masked
                                           48 65 6c 6c 6f   unmasked  \"Hello\"
One complete and valid frame.
";

/// Returns the expected output for the RFC's masked "Hello" frame (§5.7) if the tool recognizes `notation`.
fn hello_read_as(notation: &str) -> String {
    format!("Read as {notation}: 11 bytes.\n{HELLO}")
}

#[test]
fn the_rfcs_frame_in_many_notations() {
    let notations = [
        ("81 85 37 fa 21 3d 7f 9f 4d 51 58", "hexadecimal digits"),
        ("818537fa213d7f9f4d5158", "hexadecimal digits"),
        ("8185 37FA213D 7f9f4d5158", "hexadecimal digits"),
        ("0x81,0x85,0x37,0xfa,0x21,0x3d,0x7f,0x9f,0x4d,0x51,0x58", "hexadecimal digits"),
        ("0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58", "hexadecimal digits"),
        (r"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "hexadecimal digits"),
        ("81:85:37:fa:21:3d:7f:9f:4d:51:58", "hexadecimal digits"),
        ("81-85-37-fa-21-3d-7f-9f-4d-51-58", "hexadecimal digits"),
        ("81 85 '7' fa '!=' 7f 9f 'MQX'", "hexadecimal digits and text"),
        (r"b'\x81\x857\xfa!=\x7f\x9fMQX'", "a string literal"),
        ("{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}", "a list of hexadecimal numbers"),
        ("<Buffer 81 85 37 fa 21 3d 7f 9f 4d 51 58>", "a Node.js buffer"),
        ("Uint8Array(11) [ 129, 133, 55, 250, 33, 61, 127, 159, 77, 81, 88 ]", "a list of decimal numbers"),
        ("gYU3+iE9f59NUVg=", "base64"),
        ("10000001 10000101 00110111 11111010 00100001 00111101 01111111 10011111 01001101 01010001 01011000", "bits"),
    ];
    for (text, notation) in notations {
        assert_eq!(output(text, 0), hello_read_as(notation), "{text}, as words");
        assert_eq!(output_of(&[text], b"", 0), hello_read_as(notation), "{text}, as one word");
        assert_eq!(output_of(&[], text.as_bytes(), 0), hello_read_as(notation), "{text}, from standard input");
    }
}

/// `wirechat explain` accepts either raw bytes or a dump in the format of a tool such as xxd, hexdump, od or Wireshark.
#[test]
fn dumps_on_standard_input() {
    let inputs: [(&[u8], &str); 7] = [
        (b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "raw bytes"),
        (b"00000000: 8185 37fa 213d 7f9f 4d51 58              ..7.!=..MQX\n", "a dump of hexadecimal bytes"),
        (
            b"00000000  81 85 37 fa 21 3d 7f 9f  4d 51 58           |..7.!=..MQX|\n0000000b\n",
            "a dump of hexadecimal bytes",
        ),
        (b"0000000 81 85 37 fa 21 3d 7f 9f 4d 51 58\n0000013\n", "a dump of hexadecimal bytes"),
        (b"0000   81 85 37 fa 21 3d 7f 9f 4d 51 58                  ..7.!=..MQX\n", "a dump of hexadecimal bytes"),
        (b"0000   81 85 37 fa 21 3d 7f 9f\n0008   4d 51 58\n", "a dump of hexadecimal bytes"),
        (b"0000000 201 205 067 372 041 075 177 237 115 121 130\n0000013\n", "a dump of octal bytes"),
    ];
    for (input, notation) in inputs {
        assert_eq!(output_of(&["-"], input, 0), hello_read_as(notation), "{input:?}");
    }
    let lines = ["0000   81 85 37 fa 21 3d 7f 9f", "0008   4d 51 58"];
    assert_eq!(output_of(&lines, b"", 0), hello_read_as("a dump of hexadecimal bytes"), "one argument per line");
}

#[test]
fn an_ambiguous_notation_is_named_and_can_be_forced() {
    let dump = output("0000 81 85 37 fa 21 3d 7f 9f 4d 51 58", 0);
    let line = "Read as a dump of hexadecimal bytes: 11 bytes.\n\
                It could also be bytes from the first digit on: --as hex.\n";
    assert_eq!(dump, format!("{line}{HELLO}"));
    let forced = output("--as hex 0000 81 85 37 fa 21 3d 7f 9f 4d 51 58", 1);
    assert!(forced.starts_with("Read as hexadecimal digits: 13 bytes.\n→ CONT"), "{forced}");
    assert!(output_of(&["[81, 05, 48]"], b"", 1).contains("\nIt could also be hexadecimal digits: --as hex.\n"));
    let raw = output_of(&["--as", "raw"], b"81 85", 1);
    assert!(raw.starts_with("Read as raw bytes: 5 bytes.\n"), "{raw}");
}

#[test]
fn several_frames_of_a_client_or_a_server() {
    let two = output("01 82 M0 'He' 89 80 M0", 0);
    assert!(two.contains("→ TEXT  mask=00000000 len=2 (7-bit)  message 1, fragment 1  \"He\""), "{two}");
    assert!(two.contains("\n→ PING  fin mask=00000000 len=0 (7-bit)"), "{two}");
    let end = "2 complete and valid frames.\n\
               The message is unfinished: more fragments follow, with opcode 0, the last one with FIN (§5.4).\n";
    assert!(two.ends_with(end), "{two}");

    let server = "\
Read as hexadecimal digits: 11 bytes.
← TEXT  fin len=5 (7-bit)  \"Hello\"                                     §5.2
  81          05         48 65 6c 6c 6f
  FIN opcode  length=5   payload  \"Hello\"
← CLOSE  fin len=2 (7-bit)  1000                                       §5.2 §5.5.1
  88          02         03 e8
  FIN opcode  length=2   payload  1000
2 complete and valid frames.
";
    assert_eq!(output("--from-server 81 05 48 65 6c 6c 6f 88 02 03 e8", 0), server);
}

#[test]
fn the_rule_that_a_frame_breaks_is_named() {
    let unmasked = "\
Read as hexadecimal digits: 7 bytes.
→ TEXT  fin len=5 (7-bit)  \"Hello\"                                     §5.2
  81          05         48 65 6c 6c 6f
  FIN opcode  length=5   payload  \"Hello\"
! 1002 §5.1 this frame is not masked; a client must mask every frame; the second byte was 05, its top bit is 0
A server sends its frames like this, without a mask. If a server sent it, add --from-server.
";
    assert_eq!(output("81 05 48 65 6c 6c 6f", 1), unmasked);
    let cases = [
        ("c1 85 M0 'Hello'", "! 1002 §5.2 RSV1 is set"),
        ("83 80 M0", "! 1002 §5.2 opcode 3 has no meaning"),
        ("09 80 M0", "! 1002 §5.5 this PING has no FIN"),
        ("89 fe 00 7e M0", "! 1002 §5.5 this PING is longer than 125 bytes"),
        ("81 fe 00 05 M0 'Hello'", "! 1002 §5.2 the length is not in its shortest form"),
        ("80 80 M0", "! 1002 §5.4 this frame continues a message, and none is open"),
        ("81 81 M0 ff", "! 1007 §8.1 the text is not UTF-8"),
        ("88 82 M0 03 ee 81", "! 1002 §7.4 close code 1006 must not be sent"),
        ("88 82 M0 03 ee 81", "\n1 more byte is not read: the connection has failed (§7.1.7).\n"),
        ("88 82 M0 03 e8 81 80 M0", "\n6 more bytes are not read: no frame may follow a Close (§5.5.1).\n"),
        ("--from-server 81 85 37 fa 21 3d 7f 9f 4d 51 58", "§5.1 this frame is masked; a server must not mask any"),
        ("--from-server 81 85 37 fa 21 3d 7f 9f 4d 51 58", "If a client sent it, leave out --from-server"),
        ("--from-server 81 01 ff", "\nWrong: the server broke a rule: text must be UTF-8 (RFC 6455 §8.1).\n"),
        ("--from-server 80 00", "\nWrong: the server broke a rule: "),
        ("--from-server 88 02 03 ee", "close code 1006 must not be sent (RFC 6455 §7.4).\n"),
        ("--from-server 88 00 81 00", "\nWrong: the server sent a frame after its Close (RFC 6455 §5.5.1).\n"),
        ("82 ff 40 00 00 00 00 00 00 00 M0", "\n4611686018427387904 more bytes are missing from the payload.\n"),
    ];
    for (args, words) in cases {
        let text = output(args, 1);
        assert!(text.contains(words), "{args}: {words:?} in\n{text}");
    }
}

#[test]
fn the_missing_part_of_a_truncated_frame_is_named() {
    let cases = [
        ("81", "The second byte is missing: the mask bit and the length.\n"),
        ("81 fe 01", "1 more byte is missing from the 16-bit length.\n"),
        ("81 ff", "8 more bytes are missing from the 64-bit length.\n"),
        ("81 85", "4 more bytes are missing from the masking key.\n"),
        ("81 85 37 fa 21", "1 more byte is missing from the masking key.\n"),
        ("81 85 37 fa 21 3d", "5 more bytes are missing from the payload.\n"),
        ("81 85 37 fa 21 3d 7f 9f 4d 51", "1 more byte is missing from the payload.\n"),
        ("81 80 M0 89 81 M0", "1 more byte is missing from the payload.\n"),
    ];
    for (args, words) in cases {
        let text = output(args, 1);
        assert!(text.ends_with(words), "{args}: {words:?} at the end of\n{text}");
    }
}

#[test]
fn tls_is_recognized() {
    assert!(output("16 03 01 00 c8 01", 1).contains("\nThis is TLS"));
}

const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_request_is_checked_by_the_rules_of_the_server() {
    let valid = "\
Read as the text of an HTTP message: 161 bytes.
HTTP request, the opening handshake (§4): 161 bytes.
A valid request (§4.2.1).
The response to this key has Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo= (§4.2.2).
";
    assert_eq!(output_of(&[], REQUEST.as_bytes(), 0), valid);
    let wrong = "GET /chat HTTP/1.1\nHost: a\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Key: short\n\n";
    let expected = "\
Read as the text of an HTTP message: 92 bytes.
HTTP request, the opening handshake (§4): 92 bytes.
! 400 A line ends with LF alone; every line must end with CR LF (RFC 9112 §2.2).
! 426 Sec-WebSocket-Version: 13 is missing (RFC 6455 §4.2.1).
! 400 Sec-WebSocket-Key \"short\" is not base64 (RFC 6455 §4.2.1).
A server rejects this request: it breaks 3 rules.
(Copying text often turns CR LF into LF. If so, the rule about line ends is not broken.)
";
    assert_eq!(output_of(&[], wrong.as_bytes(), 1), expected);
    assert!(output("GET / HTTP/1.1", 1).contains("\n! 400 The blank line that ends the head is missing"));
    assert!(output("47 45 54 20 2f 20", 1).contains("\nHTTP request,"), "a request in hexadecimal is recognized too");
}

#[test]
fn a_response_is_checked_against_its_request_or_key() {
    let both = [REQUEST, RESPONSE].concat();
    let valid =
        "A valid response: s3pPLMBiTxaQ9kYGzzhZRbK+xOo= is the accept value for the key dGhlIHNhbXBsZSBub25jZQ==";
    assert!(output_of(&[], both.as_bytes(), 0).contains(valid));
    let key = ["--key", "dGhlIHNhbXBsZSBub25jZQ=="];
    assert!(output_of(&key, RESPONSE.as_bytes(), 0).contains(valid));
    assert!(output_of(&[], RESPONSE.as_bytes(), 0).contains("put the request before it, or add --key KEY."));
    let wrong = output_of(&[], both.replace("s3pP", "S3pP").as_bytes(), 1);
    assert!(wrong.contains("\n! Sec-WebSocket-Accept must be s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{wrong}");
    let rejected = output_of(&[], b"HTTP/1.1 400 Bad Request\r\n\r\n", 1);
    assert!(rejected.contains("\n! the status is 400, not 101"), "{rejected}");
}

#[test]
fn a_key_cannot_send_an_escape_sequence_to_the_terminal() {
    let (key, accept) = ("\u{1b}[31mred", accept_value(b"\x1b[31mred"));
    let both = [REQUEST, RESPONSE].concat().replace("dGhlIHNhbXBsZSBub25jZQ==", key);
    let both = both.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept);
    let output = output_of(&["--as", "raw"], both.as_bytes(), 1);
    assert!(output.contains("is the accept value for the key \\u{1b}[31mred (§4.1)"), "{output}");
}

#[test]
fn frames_may_follow_a_handshake() {
    let client = output_of(&[], &[REQUEST.as_bytes(), b"\x81\x82\0\0\0\0hi"].concat(), 0);
    assert!(client.contains("\nA valid request (§4.2.1).\n") && client.contains("\n→ TEXT"), "{client}");
    let server = output_of(&[], &[REQUEST.as_bytes(), RESPONSE.as_bytes(), b"\x81\x02hi"].concat(), 0);
    assert!(server.contains("\n← TEXT") && server.ends_with("\nOne complete and valid frame.\n"), "{server}");
}

#[test]
fn keys_close_codes_opcodes_and_sections_are_explained() {
    let key = "\
key          dGhlIHNhbXBsZSBub25jZQ==
key + GUID   dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11
its SHA-1    b3 7a 4f 2c c0 62 4f 16 90 f6 46 06 cf 38 59 45 b2 be c4 ea
in base64    s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
The last line is the accept value, Sec-WebSocket-Accept (§1.3, §4.2.2; src/ws/handshake.rs).
";
    assert_eq!(output("key dGhlIHNhbXBsZSBub25jZQ==", 0), key);
    let close = "\
Close code 1006: abnormal closure
Reported to an application when TCP ended without a Close. It is never sent.
A Close that carries it fails the connection with 1002: close code 1006 must not be sent (RFC 6455 §7.4).
§7.4; src/ws/close.rs
";
    assert_eq!(output("close 1006", 0), close);
    let ping = "\
Opcode 9 (0x9, 1001): PING
Asks for a Pong with the same payload.
A control frame: at most 125 bytes of payload, never fragmented (§5.5). With FIN and no reserved bit, its first byte is 89.
§5.5.2; src/ws/frame.rs
";
    for asked in ["opcode 9", "opcode 0x9", "opcode ping", "ping", "PING"] {
        assert_eq!(output(asked, 0), ping);
    }
    let section = "\
§5.4 fragmentation
A message may be split into frames: the first has the opcode and no FIN, the others have opcode 0,
the last has FIN. Control frames may come between them and are never fragmented. Another message may
not: a message is finished before the next one starts. Where a message is split has no meaning.
In wirechat: src/ws/protocol.rs, src/ws/message.rs
";
    for asked in ["section 5.4", "section §5.4", "5.4", "§5.4"] {
        assert_eq!(output(asked, 0), section);
    }
    assert!(output("section 5.5", 0).ends_with("\nIts subsections:\n§5.5.1   Close\n§5.5.2   Ping\n§5.5.3   Pong\n"));
    let thanks = "§13 acknowledgements\nIt has no rule for an endpoint.\n";
    assert_eq!(output("section 13", 0), thanks);
    assert!(output("section 10.3", 0).contains("page that has seen the key could choose the rest."));
    assert!(
        output("close 1010", 0)
            .contains("\nSent by a client that needs an extension which the server did not accept.\n")
    );
    assert!(output("section", 0).lines().count() > 30 && output("close", 0).contains("1009  message too big"));
    assert!(output("key abc", 0).ends_with("it must be base64 of 16 bytes, and is not base64 (§4.2.1).\n"));
}

/// For an ambiguous word or number, `wirechat explain` explains the most likely meaning and names the others.
#[test]
fn bare_words_and_numbers() {
    let cases = [
        ("close", "Opcode 8 (0x8, 1000): CLOSE\n", "\n1006  abnormal closure\n"),
        ("1006", "Close code 1006: ", "\nRead as a close code. If it is two bytes: explain --as hex 1006.\n"),
        ("9", "Opcode 9 ", "\nRead as an opcode. If it is a section: explain §9; a byte: explain 09.\n"),
        ("10", "Opcode 10 ", "a byte: explain --as hex 10.\n"),
        ("5.2", "§5.2 base framing protocol\n", "\nIn wirechat: src/ws/frame.rs\n"),
        ("§5", "§5.1 ", "\n§5.8     extensibility\n"),
        ("masking", "Sections of RFC 6455 about \"masking\":\n", "\n§5.3     client-to-server masking\n"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "key ", "--as base64.\n"),
    ];
    for (asked, start, words) in cases {
        let reply = output(asked, 0);
        assert!(reply.starts_with(start) && reply.contains(words), "{asked}:\n{reply}");
    }
}

#[test]
fn an_error_says_what_to_write() {
    let cases = [
        ("81 8x 05", "\"8x\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'\n"),
        ("818 5", "\"818\" has an odd number of hexadecimal digits; a byte has two\n"),
        ("close 70000", "\"70000\" is not a close code: write a number up to 65535 (explain close lists the codes)\n"),
        ("close 1000 1001", "\"1001\" is one word too many\n"),
        ("opcode 16", "\"16\" is not an opcode: write a number from 0 to 15, or a name such as ping\n"),
        ("section 99", "RFC 6455 has no section \"99\" (wirechat explain section lists them)\n"),
        ("key", "explain key needs one Sec-WebSocket-Key, as sent in the request\n"),
        ("-", "there are no bytes to explain: pass some, such as 81 85 37 fa 21 3d 7f 9f 4d 51 58\n"),
        ("hi", "\"hi\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'\n"),
    ];
    for (args, error) in cases {
        assert_eq!(output(args, 2), error, "{args}");
    }
    let endless = vec![b'0'; (1 << 20) + 1];
    assert_eq!(output_of(&[], &endless, 2), "standard input is over 1 MiB: pass a part of it\n");
    let converted = "\"\u{81}\u{85}7\"".as_bytes();
    assert!(output_of(&[], converted, 2).contains("bytes had been converted to characters"));
}

/// Tools such as `explain` ignore the server's environment variables. A server option before a tool's name is an error.
#[test]
fn tools_and_server_options_are_separate() {
    let program = || Command::new(env!("CARGO_BIN_EXE_wirechat"));
    let run = |command: &mut Command| command.stdin(Stdio::null()).output().expect("the program starts");
    let explained = run(program().args(["explain", "close", "1006"]).env("WIRECHAT_LISTEN", "nonsense"));
    assert_eq!(explained.status.code(), Some(0));
    let both = run(program().args(["--open", "explain", "close", "1006"]));
    assert_eq!(both.status.code(), Some(2));
    let no_tool = run(program().args(["--open", "--trace", "full"]));
    let text = String::from_utf8(no_tool.stderr).expect("UTF-8");
    assert_eq!(
        (no_tool.status.code(), text.as_str()),
        (Some(2), "wirechat: write --trace=full as one word (see --help)\n")
    );
    let help = String::from_utf8(run(program().arg("--help")).stdout).expect("UTF-8");
    for words in [
        "\nTools:\n  explain      Draw WebSocket frames",
        "\n  poke         Test a WebSocket server",
        "\n      --listen <ADDRESS>",
    ] {
        assert!(help.contains(words), "{words:?} in\n{help}");
    }
    assert!(help.starts_with("A WebSocket chat server"), "{help}");
    for tool in ["explain", "poke", "replay"] {
        let help = run(program().args([tool, "--help"]));
        let text = String::from_utf8(help.stdout).expect("UTF-8");
        assert!(help.status.success() && text.contains("Try:  wirechat ") && text.contains("exit code"), "{text}");
    }
}

/// `wirechat explain` prints an explanation of any bytes, valid or not, and escapes control characters in its output.
#[test]
fn random_bytes_are_explained_and_escaped() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..random.usize(1..300)).map(|_| random.u8(..)).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for args in [vec![hex.as_str()], vec!["--from-server", &hex]] {
            let output = explain(&args, b"");
            assert!(matches!(output.status.code(), Some(0 | 1)), "seed {seed}");
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "seed {seed}: {text:?}");
        }
    }
}

/// `wirechat explain` knows every RFC section that a protocol error or a case of `poke` cites.
#[test]
fn cited_sections_can_be_looked_up() {
    for case in catalogue::all_cases() {
        let section = case.rule.0.strip_prefix('§');
        for section in section.into_iter().chain(case.error.map(ProtocolError::section)) {
            assert!(!sections::find_sections(section).is_empty(), "§{section} of {}", case.name);
        }
    }
}
