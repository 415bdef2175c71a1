// Agents of Node, used after gaps of one's choice: address, gaps (from, to), clients, and a line of the
// advice. Prints what came of the requests when it is told to end.
'use strict';
const http = require('node:http');

const [address, low, high, clients, line] = process.argv.slice(2);
const [host, port] = address.split(':');
const counts = { requests: 0, failed: 0, last: '' };
const between = (low, high) => low + Math.random() * (high - low);
const gap = (i) => 1000 * (i % 4 ? between(Number(low), Number(high)) : between(0.3, 1));

function count(error) {
  counts.requests += 1;
  if (error) {
    counts.failed += 1;
    counts.last = String(error);
  }
}

function work(i) {
  const agent = line ? eval(line) : new http.Agent({ keepAlive: true });
  const again = (error) => {
    count(error);
    setTimeout(send, gap(i));
  };
  const send = () => {
    const request = http.request({ agent, host, port, method: 'POST', path: '/' }, (answer) => {
      answer.resume();
      answer.on('end', () => again(answer.statusCode === 200 ? null : new Error(answer.statusCode)));
      answer.on('error', again);
    });
    request.on('error', again);
    request.end('x'.repeat(200));
  };
  setTimeout(send, 1000 * Math.random());
}

for (let i = 0; i < Number(clients); i += 1) work(i);
process.on('SIGTERM', () => {
  console.log(JSON.stringify(counts));
  process.exit(0);
});
