// Client of the gateway in JavaScript: latest weight, commit, live events, statistics.
//
//     node client.mjs latest [SCALE]
//     node client.mjs commit CYLINDER_NO SHIP|RETURN
//     node client.mjs follow TOPIC...
//     node client.mjs machine MACHINE       (Socket.IO)
//     node client.mjs means MACHINE hour|day|month|year START END
//
// CYNOW_URL is the gateway's URL, CYNOW_TOKEN a token if the gateway asks for one.
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const url = process.env.CYNOW_URL ?? "http://127.0.0.1:8080";
const token = process.env.CYNOW_TOKEN ?? "";
const access = token ? { Authorization: `Bearer ${token}` } : {};

// Answers after which the same request may succeed: nothing was written, or the gateway does not know.
const repeatable = [429, 502, 503, 504];

async function get(path, query = {}) {
  const answer = await fetch(`${url}${path}?${new URLSearchParams(query)}`, { headers: access });
  if (!answer.ok) {
    throw new Error(`${answer.status}: ${await answer.text()}`);
  }
  return answer.json();
}

// Writes a commit once, however often it is sent: every attempt has the same key.
async function commit(cylinderNo, eventType, attempts = 10) {
  const headers = { ...access, "Content-Type": "application/json", "Idempotency-Key": randomUUID() };
  const body = JSON.stringify({ cylinder_no: cylinderNo, event_type: eventType });
  for (let attempt = 0; attempt < attempts; attempt += 1) {
    let delay = Math.min(2 ** attempt, 30);
    try {
      const signal = AbortSignal.timeout(10_000);
      const answer = await fetch(`${url}/api/scale-gateway/commit/`, { method: "POST", headers, body, signal });
      if (!repeatable.includes(answer.status)) {
        return answer.json();
      }
      delay = Number(answer.headers.get("Retry-After") ?? delay);
    } catch {
      // No answer: the next attempt tells.
    }
    await sleep(1000 * delay);
  }
  throw new Error("the gateway has not confirmed the commit; repeat it with the same key");
}

// Yields live events (server-sent events) without a gap: after a lost connection, from the last id on.
async function* follow(topics) {
  let last = "";
  for (;;) {
    try {
      const headers = last ? { ...access, "Last-Event-ID": last } : access;
      const answer = await fetch(`${url}/events?${new URLSearchParams({ topics: topics.join(",") })}`, { headers });
      if (!answer.ok) {
        throw Object.assign(new Error(`${answer.status}: ${await answer.text()}`), { status: answer.status });
      }
      let rest = "";
      let id = last;
      for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line.startsWith("id: ")) {
            id = line.slice(4);
          } else if (line.startsWith("data: ")) {
            yield JSON.parse(line.slice(6));
            last = id;
          }
        }
      }
    } catch (error) {
      if (error.status && !repeatable.includes(error.status)) {
        throw error;
      }
      console.error(`${error.message}; connecting again`);
    }
    await sleep(1000);
  }
}

// Shows one machine by Socket.IO, as the monitoring app does. It reconnects by itself, and gets the last hour again.
async function showMachine(machine) {
  const { io } = await import("socket.io-client");
  const socket = io(`${url}/sio/${machine}`, { transports: ["websocket"], auth: { token } });
  socket.on("connect", () => {
    console.error(`connected to ${machine}`);
    socket.emit("initialize");
  });
  for (const event of ["initialize", "update", "anomaly"]) {
    socket.on(event, (data) => console.log(JSON.stringify({ event, data })));
  }
  socket.on("connect_error", (error) => console.error(error.message));
}

const [command, ...words] = process.argv.slice(2);
const commands = {
  latest: async (scale) => {
    console.log(JSON.stringify(await get("/api/scale-gateway/latest/", scale ? { scale_id: scale } : {})));
  },
  commit: async (cylinderNo, eventType) => {
    const answer = await commit(cylinderNo, eventType);
    console.log(JSON.stringify(answer));
    process.exitCode = answer.ok ? 0 : 1;
  },
  follow: async (...topics) => {
    for await (const event of follow(topics)) {
      console.log(JSON.stringify(event));
    }
  },
  machine: showMachine,
  means: async (machine, period, start, end) => {
    for (const { name, time, data } of await get(`/stat/${period}`, { machine, start, end })) {
      console.log(name, time, data);
    }
  },
};
if (!(command in commands)) {
  console.error("usage: node client.mjs latest | commit | follow | machine | means ...");
  process.exit(2);
}
await commands[command](...words);
