// A minimal chat server on Socket.IO, which tests/cluster/measure compares with wirechat. A sender also receives its
// own messages, as in wirechat, but there are no message ids, no history and no resume. Arguments: the port and, to use
// Socket.IO's Redis adapter, the URL of Redis.

const { Server } = require("socket.io");

async function start(port, url) {
    const options = { transports: ["websocket"], serveClient: false };
    if (url) {
        const { createAdapter } = require("@socket.io/redis-adapter");
        const { createClient } = require("redis");
        const clients = [createClient({ url }), createClient({ url })];
        clients.forEach((client) => client.on("error", () => {}));
        await Promise.all(clients.map((client) => client.connect()));
        options.adapter = createAdapter(...clients);
    }
    const io = new Server(options);
    io.on("connection", (socket) => {
        const { room, username } = socket.handshake.query;
        socket.join(room);
        socket.on("message", ({ text }) => {
            io.to(room).emit("message", { username, text, time: new Date().toISOString() });
        });
    });
    io.listen(Number(port));
    console.log("ready");
}

start(process.argv[2], process.argv[3]);
