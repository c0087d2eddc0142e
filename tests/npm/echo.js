// An echo server like the one in the documentation of npm's `ws`. tests/poke.rs runs the cases of `wirechat poke`
// against it. The server listens on a free local port, and prints the port. With the argument `true`, it compresses.
const { WebSocketServer } = require("ws");

const perMessageDeflate = process.argv[2] === "true";
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate });
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket) => {
  socket.on("error", () => {}); // ignore protocol errors: `ws` closes the connection itself
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
