// A minimal chat server on Bun, for comparison in tests/deflate/measure. Usage: bun bun.js PORT COMPRESSOR
const [, , port, compressor] = process.argv;

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: Number(port),
  fetch(request, server) {
    const username = new URL(request.url).searchParams.get('username');
    return server.upgrade(request, { data: { username } }) ? undefined : new Response('', { status: 426 });
  },
  websocket: {
    perMessageDeflate: { compress: compressor, decompress: 'shared' },
    idleTimeout: 0,
    open: (socket) => socket.subscribe('room'),
    message(socket, data) {
      const { text } = JSON.parse(data).data;
      server.publish('room', JSON.stringify({ event: 'message', data: { username: socket.data.username, text } }), true);
    },
  },
});
