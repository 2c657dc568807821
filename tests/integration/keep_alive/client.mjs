// Appends over keep-alive connections until a file appears: client.mjs STOP_FILE PORT PORT. It retries nothing but a refused connection.
import fs from "node:fs";
import http from "node:http";

const [stop, ...ports] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true });
const statuses = {};
const resets = [];

function append(port) {
  return new Promise((resolve, reject) => {
    const headers = { "Content-Type": "application/json" };
    const request = http.request({ agent, headers, host: "127.0.0.1", method: "POST", path: "/append", port }, (answer) => {
      answer.on("end", () => resolve(answer.statusCode));
      answer.on("error", reject);
      answer.resume();
    });
    request.on("error", reject);
    request.end('{"data":"node"}');
  });
}

async function loop(number) {
  while (!fs.existsSync(stop)) {
    try {
      const status = await append(ports[number % ports.length]);
      statuses[status] = (statuses[status] ?? 0) + 1;
    } catch (e) {
      if (e.code !== "ECONNREFUSED") resets.push(String(e));
      number += 1;
    }
  }
}

await Promise.all([0, 1, 2, 3].map(loop));
console.log(JSON.stringify({ statuses, resets }));
process.exit(0);
