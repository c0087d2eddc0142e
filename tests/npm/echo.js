// An echo server of npm's `ws`, as its own documentation writes one: tests/poke.rs plays the catalogue against it.
// It listens on a free port of this machine, and prints that port. With the argument `true`, it compresses.
const { WebSocketServer } = require("ws");

const perMessageDeflate = process.argv[2] === "true";
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate });
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket) => {
  socket.on("error", () => {}); // a broken rule: `ws` has already begun to close
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
