// A uWebSockets.js chat server that `measure` compares with wirechat. Usage: node uws.js PORT COMPRESSOR
const uWS = require('@trufflesuite/uws-js-unofficial');
const [, , port, compressor] = process.argv;

const app = uWS.App().ws('/*', {
  compression: uWS[compressor],
  idleTimeout: 0,
  maxBackpressure: 16 << 20,
  upgrade(response, request, context) {
    const query = new URLSearchParams(request.getQuery());
    const headers = ['key', 'protocol', 'extensions'].map((name) => request.getHeader(`sec-websocket-${name}`));
    response.upgrade({ username: query.get('username') }, ...headers, context);
  },
  open: (socket) => socket.subscribe('room'),
  message(socket, data) {
    const { text } = JSON.parse(Buffer.from(data).toString()).data;
    const { username } = socket.getUserData();
    app.publish('room', JSON.stringify({ event: 'message', data: { username, text } }), false, true);
  },
});
app.listen('127.0.0.1', Number(port), (listening) => listening || process.exit(1));
