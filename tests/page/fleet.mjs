// Starts replicas, Redis and a browser, and ends them by process id.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const BINARY = process.env.ROWLOCK_BINARY ?? join(ROOT, "target/debug/rowlock");
/** The longest time that a test waits for anything. */
export const PATIENCE_MS = 30_000;

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Starts a process, and waits for a line with `marker` on its output. Returns both. */
async function start(command, args, options, marker) {
  const child = spawn(command, args, { ...options, stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  const ready = new Promise((resolve, reject) => {
    for (const output of [child.stdout, child.stderr]) {
      createInterface({ input: output }).on("line", (line) => {
        log = `${log}${line}\n`.slice(-20_000);
        if (line.includes(marker)) resolve(line);
      });
    }
    child.on("error", reject);
    child.on("exit", () => reject(new Error(`${command} ended:\n${log}`)));
  });
  return { child, line: await ready };
}

async function end(child, signal = "SIGTERM") {
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill(signal);
  const late = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await ended;
  clearTimeout(late);
}

export class Redis {
  async start() {
    this.folder ??= await mkdtemp(join(tmpdir(), "rowlock-page-redis-"));
    for (let tries = 0; ; tries += 1) {
      // Another process may take the port before the server has it.
      this.port ??= await freePort();
      const args = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", String(this.port), "--dir", this.folder];
      try {
        this.child = (await start("redis-server", args, {}, "Ready to accept connections")).child;
        return this;
      } catch (e) {
        if (tries === 20) throw e;
        if (!this.stopped) this.port = null;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  }

  async stop() {
    this.stopped = true;
    await end(this.child, "SIGKILL");
  }

  async remove() {
    await this.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}

export class Replica {
  constructor(name, folder, settings) {
    Object.assign(this, { name, folder, settings });
  }

  /** Starts on the same port as before, if there was one. */
  async start() {
    const env = { ROWLOCK_LISTEN: this.address ?? "127.0.0.1:0", ROWLOCK_REPLICA: this.name, ...this.settings };
    const { child, line } = await start(BINARY, [], { env, cwd: this.folder }, "listening=");
    this.child = child;
    this.url = line.split("listening=")[1].trim();
    this.address = this.url.replace("http://", "");
    return this;
  }

  async append(fields) {
    const response = await fetch(`${this.url}/append`, { method: "POST", body: new URLSearchParams(fields) });
    return { status: response.status, ...(await response.json()) };
  }

  async end(signal) {
    await end(this.child, signal);
  }
}

/** Replicas with these names, on one file and one Redis. */
export class Fleet {
  static async start(names, settings = {}) {
    const fleet = new Fleet();
    fleet.redis = await new Redis().start();
    fleet.folder = await mkdtemp(join(tmpdir(), "rowlock-page-"));
    const shared = {
      REDIS_CONN_STR: `redis://127.0.0.1:${fleet.redis.port}/0`, REDIS_CSV_FILE_NAME: join(fleet.folder, "rows.csv"),
      ROWLOCK_JOURNAL_BYTES: "4MiB", ...settings,
    };
    fleet.replicas = await Promise.all(names.map((name) => new Replica(name, fleet.folder, shared).start()));
    return fleet;
  }

  async end() {
    await Promise.all(this.replicas.map((replica) => replica.end()));
    await this.redis.remove();
    await rm(this.folder, { recursive: true, force: true });
  }
}

export function browser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
      "--no-first-run", "--disable-quic",
    ],
  });
}
