// Clients for tests/deflate.rs that use npm's `ws`. Each stdin line is a JSON command, each stdout line a JSON event.
const readline = require("readline");
const WebSocket = require(process.argv[2]);

const peers = new Map();
const print = (event) => process.stdout.write(JSON.stringify(event) + "\n");

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { open, url, options, send, close, pause, resume, text } = JSON.parse(line);
  if (open !== undefined) {
    const socket = new WebSocket(url, { perMessageDeflate: { threshold: 0, ...options } });
    peers.set(open, socket);
    socket.on("open", () => print({ peer: open, extensions: socket.extensions }));
    socket.on("message", (data) => print({ peer: open, text: data.toString() }));
    socket.on("error", (error) => print({ peer: open, error: error.message }));
    socket.on("close", (code) => print({ peer: open, closed: code }));
  }
  if (send !== undefined) peers.get(send).send(text);
  if (close !== undefined) peers.get(close).close(1000);
  if (pause !== undefined) peers.get(pause).pause();
  if (resume !== undefined) peers.get(resume).resume();
}).on("close", () => process.exit(0));
