// Sends what it is told to on its standard input, with one client, as that client is by default.
"use strict";

const BODY = "hello";

const senders = {
  http(method, url) {
    return new Promise((resolve, reject) => {
      const request = require("node:http").request(url, { method }, (response) => {
        let text = "";
        response.setEncoding("utf8");
        response.on("data", (part) => (text += part));
        response.on("error", reject);
        response.on("end", () => resolve([response.statusCode, text]));
      });
      request.on("error", reject);
      request.end(method === "POST" ? BODY : undefined);
    });
  },

  async undici(method, url) {
    const { request } = require("./target/node_modules/undici");
    const response = await request(url, { method, body: method === "POST" ? BODY : undefined });
    return [response.statusCode, await response.body.text()];
  },
};

const told = (error) => `${error.name}: ${error.message}${error.code ? ` (${error.code})` : ""}`.replaceAll(/\s+/g, " ");

const outcome = ([status, text]) => (status === 200 ? "ok" : `${status} ${text.trim()}`);

async function main(send) {
  for await (const line of require("node:readline").createInterface({ input: process.stdin })) {
    const [method, url, count] = line.split(" ");
    const wave = Array.from({ length: Number(count) }, () => send(method, url).then(outcome, told));
    console.log((await Promise.all(wave)).join("\n"));
  }
  process.exit(0);
}

main(senders[process.argv[2]]);
