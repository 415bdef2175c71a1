// The Node server of the tests. Arguments: address, port, keepAliveTimeout in milliseconds, and for
// TLS key and certificate.
'use strict';
const fs = require('node:fs');

const [address, port, keepAlive, key, cert] = process.argv.slice(2);
const handle = (request, response) => {
  request.resume();
  request.on('end', () => response.end('ok\n'.repeat(50)));
};
const server = key
  ? require('node:https').createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, handle)
  : require('node:http').createServer(handle);
// Node closes a second later than it says here: the header announces the earlier time.
server.keepAliveTimeout = Number(keepAlive);
// A line of advice.
if (process.env.LINE) eval(process.env.LINE);
server.listen(Number(port), address);
