// A client of npm's socket.io-client: `node client.js URL NAMESPACE,... TRANSPORT,...`.
// Says what happens as a line of JSON each, and takes events to send as lines of JSON: [namespace, event, ...arguments].
"use strict";
const readline = require("node:readline");
const { Manager } = require("socket.io-client");

const [url, namespaces, transports] = process.argv.slice(2);
const say = (...what) => console.log(JSON.stringify(what));

const manager = new Manager(url, { transports: transports.split(","), reconnectionDelay: 50, reconnectionDelayMax: 50 });
manager.on("open", () => manager.engine.on("upgrade", (transport) => say("upgrade", transport.name)));
const sockets = new Map();
for (const namespace of namespaces.split(",")) {
  const socket = manager.socket(namespace);
  socket.on("connect", () => say("connect", namespace, manager.engine.transport.name));
  socket.on("connect_error", (error) => say("connect_error", namespace, error.message));
  socket.on("disconnect", (reason) => say("disconnect", namespace, reason));
  socket.onAny((event, ...data) => say("event", namespace, event, ...data));
  sockets.set(namespace, socket);
}
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [namespace, event, ...data] = JSON.parse(line);
  sockets.get(namespace).emit(event, ...data, (...answer) => say("ack", namespace, event, ...answer));
}).on("close", () => process.exit(0));
