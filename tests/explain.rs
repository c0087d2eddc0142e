//! `wirechat explain`, run as a person runs it: what it prints, word for word, and how it ends.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use wirechat::tools::{explain::sections, poke::catalogue};
use wirechat::ws::close::ProtocolError;

/// Runs `wirechat explain` with these arguments, and `input` on its standard input.
fn explain(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wirechat"))
        .arg("explain")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is run");
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().expect("it ends")
}

/// What it prints, if it ends with this code; of an error the one line.
fn says_of(args: &[&str], input: &[u8], code: i32) -> String {
    let output = explain(args, input);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
    assert!(!out.contains('\x1b'), "no colour in a pipe");
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

fn says(args: &str, code: i32) -> String {
    let args: Vec<&str> = args.split(' ').collect();
    says_of(&args, b"", code)
}

const HELLO: &str = "\
→ TEXT  fin mask=37fa213d len=5 (7-bit)  \"Hello\"                       §5.2 §5.3
  81          85             37 fa 21 3d   7f 9f 4d 51 58
  FIN opcode  MASK length=5  masking key   payload, masked
                                           48 65 6c 6c 6f   unmasked  \"Hello\"
A whole frame, and nothing is wrong with it.
";

#[test]
fn the_rfcs_frame_in_every_notation() {
    let notations = [
        "81 85 37 fa 21 3d 7f 9f 4d 51 58",
        "818537fa213d7f9f4d5158",
        "8185 37FA213D 7f9f4d5158",
        "0x81,0x85,0x37,0xfa,0x21,0x3d,0x7f,0x9f,0x4d,0x51,0x58",
        "0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58",
        r"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        "81:85:37:fa:21:3d:7f:9f:4d:51:58",
        "81 85 '7' fa '!=' 7f 9f 'MQX'",
        r"b'\x81\x857\xfa!=\x7f\x9fMQX'",
        "10000001 10000101 00110111 11111010 00100001 00111101 01111111 10011111 01001101 01010001 01011000",
    ];
    for notation in notations {
        assert_eq!(says(notation, 0), HELLO, "{notation}");
        assert_eq!(says_of(&[notation], b"", 0), HELLO, "{notation}, in one word");
        assert_eq!(says_of(&[], notation.as_bytes(), 0), HELLO, "{notation}, from standard input");
    }
    let inputs: [&[u8]; 3] = [
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"00000000: 8185 37fa 213d 7f9f 4d51 58              ..7.!=..MQX\n",
        b"00000000  81 85 37 fa 21 3d 7f 9f  4d 51 58           |..7.!=..MQX|\n0000000b\n",
    ];
    for input in inputs {
        assert_eq!(says_of(&["-"], input, 0), HELLO, "{input:?}");
    }
}

#[test]
fn several_frames_and_both_sides() {
    let two = says("01 82 M0 'He' 89 80 M0", 0);
    assert!(two.contains("→ TEXT  mask=00000000 len=2 (7-bit)  message 1, fragment 1  \"He\""), "{two}");
    assert!(two.contains("\n→ PING  fin mask=00000000 len=0 (7-bit)"), "{two}");
    let end = "2 whole frames, and nothing is wrong with them.\n\
               Its message is not finished: continuations follow, opcode 0, the last of them with FIN (§5.4).\n";
    assert!(two.ends_with(end), "{two}");

    let server = "\
← TEXT  fin len=5 (7-bit)  \"Hello\"                                     §5.2
  81          05         48 65 6c 6c 6f
  FIN opcode  length=5   payload  \"Hello\"
← CLOSE  fin len=2 (7-bit)  1000                                       §5.2 §5.5.1
  88          02         03 e8
  FIN opcode  length=2   payload  1000
2 whole frames, and nothing is wrong with them.
";
    assert_eq!(says("--from-server 81 05 48 65 6c 6c 6f 88 02 03 e8", 0), server);
}

#[test]
fn what_is_wrong_with_a_wrong_frame() {
    let unmasked = "\
→ TEXT  fin len=5 (7-bit)  \"Hello\"                                     §5.2
  81          05         48 65 6c 6c 6f
  FIN opcode  length=5   payload  \"Hello\"
! 1002 §5.1 this frame is not masked; a client must mask every frame; the second byte was 05, its top bit is 0
Only a client masks: a server sends its frames like this one. If one did, ask again with --from-server.
";
    assert_eq!(says("81 05 48 65 6c 6c 6f", 1), unmasked);
    let cases = [
        ("c1 85 M0 'Hello'", "! 1002 §5.2 RSV1 is set"),
        ("83 80 M0", "! 1002 §5.2 opcode 3 has no meaning"),
        ("09 80 M0", "! 1002 §5.5 this PING has no FIN"),
        ("89 fe 00 7e M0", "! 1002 §5.5 this PING is longer than 125 bytes"),
        ("81 fe 00 05 M0 'Hello'", "! 1002 §5.2 the length is not in its shortest form"),
        ("80 80 M0", "! 1002 §5.4 this frame continues a message, and none is open"),
        ("81 81 M0 ff", "! 1007 §8.1 the text is not UTF-8"),
        ("88 82 M0 03 ee 81", "! 1002 §7.4 close code 1006 must not be sent"),
        ("88 82 M0 03 ee 81", "\n1 more byte is not read: the connection is failed (§7.1.7).\n"),
        ("88 82 M0 03 e8 81 80 M0", "\n6 more bytes are not read: behind a Close there are no frames (§5.5.1).\n"),
        ("--from-server 81 85 37 fa 21 3d 7f 9f 4d 51 58", "§5.1 this frame is masked; a server must not mask any"),
        ("--from-server 81 85 37 fa 21 3d 7f 9f 4d 51 58", "if a client sent this frame, ask again without"),
        ("--from-server 81 01 ff", "\nWrong: the server broke a rule: text must be UTF-8 (RFC 6455 §8.1).\n"),
        ("--from-server 80 00", "\nWrong: the server broke a rule: "),
        ("--from-server 88 02 03 ee", "close code 1006 must not be sent (RFC 6455 §7.4).\n"),
        ("--from-server 88 00 81 00", "\nWrong: the server sent a frame after its Close (RFC 6455 §5.5.1).\n"),
        ("82 ff 40 00 00 00 00 00 00 00 M0", "\n4611686018427387904 more bytes are missing of the payload.\n"),
    ];
    for (args, words) in cases {
        let said = says(args, 1);
        assert!(said.contains(words), "{args}: {words:?} in\n{said}");
    }
}

#[test]
fn what_is_missing_of_a_cut_frame() {
    let cases = [
        ("81", "The second byte is missing: the mask bit, and the length.\n"),
        ("81 fe 01", "1 more byte is missing of the 16-bit length.\n"),
        ("81 ff", "8 more bytes are missing of the 64-bit length.\n"),
        ("81 85", "4 more bytes are missing of the masking key.\n"),
        ("81 85 37 fa 21", "1 more byte is missing of the masking key.\n"),
        ("81 85 37 fa 21 3d", "5 more bytes are missing of the payload.\n"),
        ("81 85 37 fa 21 3d 7f 9f 4d 51", "1 more byte is missing of the payload.\n"),
        ("81 80 M0 89 81 M0", "1 more byte is missing of the payload.\n"),
    ];
    for (args, words) in cases {
        let said = says(args, 1);
        assert!(said.ends_with(words), "{args}: {words:?} at the end of\n{said}");
    }
}

#[test]
fn what_is_no_frame() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let behind = says_of(&[], &[head.as_bytes(), b"\x81\x82\0\0\0\0hi"].concat(), 0);
    let line = "The first 27 bytes are an HTTP request: the opening handshake (§4). Frames begin behind it:\n→ TEXT";
    assert!(behind.starts_with(line), "{behind}");
    let alone = "The first 27 bytes are an HTTP request: the opening handshake (§4). Frames would begin here.\n";
    assert_eq!(says_of(&[], head.as_bytes(), 0), alone);
    let answer = says("HTTP/1.1 101 Switching Protocols", 1);
    assert!(answer.starts_with("This is an HTTP answer, not a frame: the opening handshake (§4)."), "{answer}");
    assert!(says("47 45 54 20 2f 20", 1).starts_with("This is an HTTP request"), "in hexadecimal as well");
    assert!(says("16 03 01 00 c8 01", 1).starts_with("This is TLS"));
}

#[test]
fn answers_in_words() {
    let key = "\
key          dGhlIHNhbXBsZSBub25jZQ==
key + GUID   dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11
its SHA-1    b3 7a 4f 2c c0 62 4f 16 90 f6 46 06 cf 38 59 45 b2 be c4 ea
in base64    s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
The last line is Sec-WebSocket-Accept (§1.3, §4.2.2; src/ws/handshake.rs).
";
    assert_eq!(says("key dGhlIHNhbXBsZSBub25jZQ==", 0), key);
    let close = "\
1006: no Close
An application is told this when the TCP connection ended without a Close. It is never sent.
wirechat answers a Close with it with 1002: close code 1006 must not be sent (RFC 6455 §7.4).
§7.4; src/ws/close.rs
";
    assert_eq!(says("close 1006", 0), close);
    let ping = "\
opcode 9 (0x9, 1001): PING
Asks for a Pong with the same payload.
A control frame: at most 125 bytes, never fragmented (§5.5). With FIN, and without a reserved bit, its first byte is 89.
§5.5.2; src/ws/frame.rs
";
    for asked in ["opcode 9", "opcode 0x9", "opcode ping"] {
        assert_eq!(says(asked, 0), ping);
    }
    let section = "\
§5.4 fragments
A message may be cut into frames: the first has the opcode and no FIN, those behind it have opcode
0, the last has FIN. Control frames may come in between and are never cut. Another message may not:
one is finished before the next begins. Where a message was cut means nothing.
in wirechat: src/ws/protocol.rs, src/ws/message.rs
";
    assert_eq!(says("section 5.4", 0), section);
    assert_eq!(says("section §5.4", 0), section);
    assert!(says("section 5.5", 0).ends_with("\nBelow it:\n§5.5.1   Close\n§5.5.2   Ping\n§5.5.3   Pong\n"));
    let thanks = "§13 thanks\nIt asks nothing of an endpoint, and has no place in wirechat.\n";
    assert_eq!(says("section 13", 0), thanks);
    assert!(says("section 10.3", 0).contains("page that has seen the key could choose the rest."));
    assert!(
        says("close 1010", 0).contains("\nSaid by a client that wanted an extension which the server did not take.\n")
    );
    assert!(says("section", 0).lines().count() > 30 && says("close", 0).contains("1009  too big"));
    assert!(says("key abc", 0).ends_with("A key must be base64, and this is not (§4.2.1).\n"));
}

#[test]
fn questions_that_make_no_sense() {
    let cases = [
        ("81 8x 05", "\"8x\" is no byte: a byte is two hexadecimal digits\n"),
        ("818", "\"818\" is half a byte too much or too little: a byte is two hexadecimal digits\n"),
        ("close 70000", "\"70000\" is no close code: it is a number up to 65535\n"),
        ("close 1000 1001", "\"1001\" is one word too many\n"),
        ("opcode 16", "\"16\" is no opcode: it is a number from 0 to 15, or a name such as ping\n"),
        ("section 99", "RFC 6455 has no section \"99\" (wirechat explain section)\n"),
        ("key", "explain key wants one Sec-WebSocket-Key, as sent\n"),
        ("-", "there are no bytes to explain\n"),
        ("hello", "\"hello\" is no byte: a byte is two hexadecimal digits\n"),
    ];
    for (args, error) in cases {
        assert_eq!(says(args, 2), error, "{args}");
    }
    let endless = vec![b'0'; (1 << 20) + 1];
    assert_eq!(says_of(&[], &endless, 2), "standard input is over 1 MiB\n");
}

/// The options of the server, and what the environment says of them, are none of a tool's business.
#[test]
fn beside_the_server() {
    let program = || Command::new(env!("CARGO_BIN_EXE_wirechat"));
    let run = |command: &mut Command| command.stdin(Stdio::null()).output().expect("it is run");
    let explained = run(program().args(["explain", "close", "1006"]).env("WIRECHAT_LISTEN", "nonsense"));
    assert_eq!(explained.status.code(), Some(0));
    let both = run(program().args(["--open", "explain", "close", "1006"]));
    assert_eq!(both.status.code(), Some(2));
    let no_tool = run(program().args(["--open", "--trace", "full"]));
    let said = String::from_utf8(no_tool.stderr).expect("UTF-8");
    assert_eq!(
        (no_tool.status.code(), said.as_str()),
        (Some(2), "wirechat: write --trace=full as one word (see --help)\n")
    );
    let help = String::from_utf8(run(program().arg("--help")).stdout).expect("UTF-8");
    for words in ["\nTools:\n  explain  Draws frames", "\n  poke     Does one thing", "\n      --listen <HOST:PORT>"] {
        assert!(help.contains(words), "{words:?} in\n{help}");
    }
    assert!(help.starts_with("A chat server over WebSockets"), "{help}");
    for tool in ["explain", "poke", "replay"] {
        let help = run(program().args([tool, "--help"]));
        let text = String::from_utf8(help.stdout).expect("UTF-8");
        assert!(help.status.success() && text.contains("Try:  wirechat ") && text.contains("exit code"), "{text}");
    }
}

/// Whatever the bytes are, something is said of them, and nothing of them reaches the terminal as it is.
#[test]
fn any_bytes() {
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

/// Whatever section a broken rule or a case of `poke` names, a learner can ask for it.
#[test]
fn what_is_cited_can_be_looked_up() {
    for case in catalogue::all() {
        let section = case.rule.0.strip_prefix('§');
        for section in section.into_iter().chain(case.error.map(ProtocolError::section)) {
            assert!(!sections::find(section).is_empty(), "§{section} of {}", case.name);
        }
    }
}
