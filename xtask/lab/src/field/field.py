"""field.py FINRACE KIND...: real servers that close idle connections after about a second, and clients that do not watch
theirs, beside `FINRACE watch --json`.

Each connection asks once, waits, asks again, and knows whether that was answered: that is the truth, by connection. The
table says for each kind how many connections there were, how many requests were lost, and of these how many were told
once (right), not at all (missed) or twice (doubled); how many were told that were answered (false), and how many without
their outcome. Then what `finrace serve` says of each server: a loss is never denied, and none made up. Exit status 1 if
there is any of these.
"""
import collections, json, os, random, resource, signal, socket, ssl, struct, subprocess, sys, tempfile, threading, time, urllib.request
N = 40
truth = []
out_lock = threading.Lock()
def say(**k):
    with out_lock: truth.append(k)
def addr(s):
    a = s.getsockname(); return f'[{a[0]}]:{a[1]}' if ':' in a[0] else f'{a[0]}:{a[1]}'
def peer(s):
    a = s.getpeername(); return f'[{a[0]}]:{a[1]}' if ':' in a[0] else f'{a[0]}:{a[1]}'
def recv_until(s, done):
    b = b''
    while not done(b):
        d = s.recv(4096)
        if not d: raise EOFError(b)
        b += d
    return b
def wait_port(port):
    for _ in range(200):
        try: socket.create_connection(('127.0.0.1', port), 1).close(); return
        except OSError: time.sleep(.05)
    raise SystemExit(f'port {port} not up')
class Proto:
    tls = False
    def setup(self, s): pass
    def ask(self, s): raise NotImplementedError
    def bye(self, s): pass
class Redis(Proto):
    def ask(self, s): s.sendall(b'*2\r\n$3\r\nGET\r\n$1\r\nk\r\n'); recv_until(s, lambda b: b.endswith(b'\r\n'))
class RedisInline(Proto):
    def ask(self, s): s.sendall(b'GET k\r\n'); recv_until(s, lambda b: b.endswith(b'\r\n'))
class Memcached(Proto):
    def ask(self, s): s.sendall(b'get key\r\n'); recv_until(s, lambda b: b.endswith(b'END\r\n'))
class Pg(Proto):
    db = 'postgres'; user = 'postgres'
    def setup(self, s):
        p = b'user\0' + self.user.encode() + b'\0database\0' + self.db.encode() + b'\0\0'; m = struct.pack('>II', len(p) + 8, 196608) + p; s.sendall(m); recv_until(s, lambda b: b.endswith(b'I') and b[-6:-5] == b'Z')
    def ask(self, s):
        q = b'SELECT 22\0'; s.sendall(b'Q' + struct.pack('>I', len(q) + 4) + q); b = recv_until(s, lambda b: b[-6:-5] == b'Z' or b[:1] == b'E')
        if b[:1] == b'E': raise EOFError(b)
    def bye(self, s): s.sendall(b'X\0\0\0\x04')
class Ldap(Proto):
    n = 1
    def ask(self, s):
        self.n = self.n % 100 + 1
        s.sendall(bytes.fromhex('30250201%02x6320040 00a01000a0100020100020100010100870b6f626a656374436c6173733000'.replace(' ', '') % self.n)); b = recv_until(s, lambda b: b'\x65\x07\x0a\x01' in b or b'\x78' in b[:8])
    def bye(self, s): s.sendall(bytes.fromhex('30050201634200'))
class Mqtt(Proto):
    def setup(self, s):
        cid = b'c%d' % random.randrange(10**6); v = b'\0\4MQTT\4\2' + struct.pack('>H', 1) + struct.pack('>H', len(cid)) + cid; s.sendall(b'\x10' + bytes([len(v)]) + v); recv_until(s, lambda b: len(b) >= 4)
    def ask(self, s): v = struct.pack('>H', 1) + b't' + struct.pack('>H', 7) + b'hello'; s.sendall(b'\x32' + bytes([len(v)]) + v); recv_until(s, lambda b: len(b) >= 4)
    def bye(self, s): s.sendall(b'\xe0\0')
class Http(Proto):
    path = '/'; pad = 0; body = 0
    def ask(self, s):
        m = b'POST' if self.body else b'GET'; h = m + b' ' + self.path.encode() + b' HTTP/1.1\r\nHost: x\r\n'
        if self.body: h += b'Content-Length: %d\r\n' % self.body
        if self.pad: h += b'X-Pad: ' + b'p' * self.pad + b'\r\n'
        s.sendall(h + b'\r\n' + b'b' * self.body)
        b = recv_until(s, lambda b: b'\r\n\r\n' in b); head, _, rest = b.partition(b'\r\n\r\n'); st = int(head.split()[1])
        if st == 408: raise EOFError(b)
        self.closing = b'connection: close' in head.lower()
        n = next((int(l.split(b':')[1]) for l in head.split(b'\r\n') if l.lower().startswith(b'content-length:')), 0)
        if b'chunked' in head.lower():
            while not rest.endswith(b'0\r\n\r\n'):
                d = s.recv(4096)
                if not d: raise EOFError
                rest += d
        else:
            while len(rest) < n:
                d = s.recv(4096)
                if not d: raise EOFError
                rest += d
def connect(port, p, host='127.0.0.1'):
    s = socket.create_connection((host, port), 10); s.setsockopt(6, 1, 1); raw = s
    if p.tls:
        c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE; s = c.wrap_socket(s, server_hostname='x')
    s.settimeout(10); p.setup(s); return s
def one(kind, port, make, gap, host='127.0.0.1', times=1, bye=False):
    p = make()
    try:
        s = connect(port, p, host)
        p.ask(s); me, you = addr(s), peer(s)
    except (OSError, EOFError) as e: say(kind=kind, error=repr(e)); return
    lost = None
    for _ in range(times):
        time.sleep(gap)
        try: p.ask(s); lost = False
        except (OSError, EOFError): lost = True; break
    try:
        if not lost:
            if bye: p.bye(s)
        s.close()
    except OSError: pass
    say(kind=kind, local=me, peer=you, gap=gap, lost=lost)
def run(kind, port, make, lo, hi, n=None, host='127.0.0.1', **k):
    ts = []
    for i in range(n or N):
        g = lo if i % 4 == 0 else random.uniform(lo, hi)
        t = threading.Thread(target=one, args=(kind, port, make, g, host), kwargs=k); t.start(); ts.append(t); time.sleep(.03)
    [t.join() for t in ts]
procs = []
def start(*a, **k):
    p = subprocess.Popen(a, stdout=open(os.path.join(D, os.path.basename(a[0]) + str(len(procs)) + '.log'), 'w'), stderr=subprocess.STDOUT, **k); procs.append(p); return p
D = tempfile.mkdtemp(prefix='field'); os.chmod(D, 0o777)
B = os.path.join(os.path.dirname(sys.executable), '')
def write(name, text):
    p = os.path.join(D, name); open(p, 'w').write(text); return p
def cert():
    if not os.path.exists(D + '/c.pem'): subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', D + '/k.pem', '-out', D + '/c.pem', '-days', '2', '-subj', '/CN=x'], check=True, capture_output=True)
    return D + '/c.pem', D + '/k.pem'
def redis(kind='redis', make=Redis): start('redis-server', '--port', '27301', '--timeout', '1', '--save', '', '--dir', D, '--hz', '10'); wait_port(27301); run('redis', 27301, Redis, .3, 3); run('redis-inline', 27301, RedisInline, .3, 3, bye=False)
def memcached(): start('memcached', '-u', 'nobody', '-p', '27302', '-l', '127.0.0.1', '-o', 'idle_timeout=1'); wait_port(27302); run('memcached', 27302, Memcached, .3, 4)
def postgres():
    d = D + '/pg'; os.mkdir(d); subprocess.run(['chown', 'postgres', d]); bin = subprocess.run('ls -d /usr/lib/postgresql/*/bin', shell=True, capture_output=True, text=True).stdout.split()[0]
    subprocess.run(['su', 'postgres', '-c', f'{bin}/initdb -A trust -D {d} >/dev/null'], check=True)
    start('su', 'postgres', '-c', f'exec {bin}/postgres -D {d} -p 27303 -k {D} -c idle_session_timeout=1000 -c max_connections=200'); wait_port(27303); time.sleep(1)
    run('postgres', 27303, Pg, .3, 2, bye=True)
def pgbouncer():
    ini = write('pgb.ini', f'[databases]\npostgres = host=127.0.0.1 port=27303 user=postgres\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=27304\nauth_type=any\nadmin_users=postgres\nclient_idle_timeout=1\nunix_socket_dir=\npidfile={D}/pgb.pid\nlogfile={D}/pgb.log\nserver_idle_timeout=300\n')
    os.chmod(ini, 0o644); start('su', 'postgres', '-s', '/bin/sh', '-c', f'exec pgbouncer {ini}'); wait_port(27304); run('pgbouncer', 27304, Pg, .3, 3, bye=True)
def mariadb():
    d = D + '/my'; subprocess.run(['mariadb-install-db', '--user=mysql', f'--datadir={d}', '--auth-root-authentication-method=normal'], check=True, capture_output=True)
    start('mariadbd', '--user=mysql', f'--datadir={d}', '--port=27305', '--bind-address=127.0.0.1', f'--socket={D}/my.sock', '--wait-timeout=1', '--skip-grant-tables', '--max-connections=300', f'--pid-file={D}/my.pid'); wait_port(27305); time.sleep(1)
    import pymysql
    class My(Proto): pass
    def one_my(g):
        c = pymysql.connect(host='127.0.0.1', port=27305, user='root', password=''); cur = c.cursor(); cur.execute('SELECT 22'); cur.fetchall(); me, you = addr(c._sock), peer(c._sock); time.sleep(g)
        try: cur.execute('SELECT 22'); cur.fetchall(); lost = False
        except Exception: lost = True
        try: c.close()
        except Exception: pass
        say(kind='mariadb', local=me, peer=you, gap=g, lost=lost)
    ts = [threading.Thread(target=one_my, args=(random.uniform(.3, 2),)) for _ in range(N)]; [(t.start(), time.sleep(.03)) for t in ts]; [t.join() for t in ts]
def slapd():
    os.mkdir(D + '/ldap'); cf = write('slapd.conf', f'include /etc/ldap/schema/core.schema\npidfile {D}/slapd.pid\nidletimeout 1\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\ndatabase mdb\nsuffix "dc=x"\nrootdn "cn=a,dc=x"\nrootpw s\ndirectory {D}/ldap\n')
    start('slapd', '-d', '0', '-f', cf, '-h', 'ldap://127.0.0.1:27306'); wait_port(27306); run('slapd', 27306, Ldap, .3, 3.5, bye=True)
def mosquitto(): cf = write('mq.conf', 'listener 27308 127.0.0.1\nallow_anonymous true\n'); start('mosquitto', '-c', cf); wait_port(27308); run("mosquitto", 27308, Mqtt, .3, 9, bye=True)
def haproxy():
    start(sys.executable, '-c', 'import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n protocol_version="HTTP/1.1"\n timeout=60\n def do_GET(s):s.send_response(200);s.send_header("Content-Length","2");s.end_headers();s.wfile.write(b"ok")\n do_POST=do_GET\n def log_message(*a):pass\nh.ThreadingHTTPServer(("127.0.0.1",27310),H).serve_forever()')
    cf = write('ha.cfg', 'defaults\n timeout connect 2s\n timeout client 1s\n timeout server 30s\nfrontend h\n mode http\n timeout http-keep-alive 1s\n bind 127.0.0.1:27311\n default_backend b\nbackend b\n mode http\n server s 127.0.0.1:27310\nlisten t\n mode tcp\n bind 127.0.0.1:27312\n server r 127.0.0.1:27301\n')
    start('haproxy', '-f', cf); wait_port(27310); wait_port(27311); wait_port(27312); run('haproxy-http', 27311, Http, .3, 2)
def haproxy_tcp(): start('redis-server', '--port', '27301', '--save', '', '--dir', D); wait_port(27301); cf = write('hat.cfg', 'defaults\n timeout connect 2s\n timeout client 1s\n timeout server 30s\nlisten t\n mode tcp\n bind 127.0.0.1:27313\n server r 127.0.0.1:27301\n'); start('haproxy', '-f', cf); wait_port(27313); run('haproxy-tcp', 27313, Redis, .3, 2)
class Https(Http): tls = True
def uvicorn():
    c, k = cert(); write('app.py', 'async def app(scope, receive, send):\n  if scope["type"]=="http":\n    await send({"type":"http.response.start","status":200,"headers":[(b"content-length",b"2")]}); await send({"type":"http.response.body","body":b"ok"})\n')
    start(B + 'uvicorn', '--app-dir', D, 'app:app', '--port', '27314', '--timeout-keep-alive', '1', '--ssl-certfile', c, '--ssl-keyfile', k, '--log-level', 'warning'); wait_port(27314); run('uvicorn-tls', 27314, Https, .3, 2)
    start(B + 'uvicorn', '--app-dir', D, 'app:app', '--port', '27315', '--timeout-keep-alive', '1', '--log-level', 'warning'); wait_port(27315); run('uvicorn', 27315, Http, .3, 2)
def aiohttp():
    c, k = cert(); a = write('aio.py', f'import ssl\nfrom aiohttp import web\nasync def h(r): return web.Response(text="ok")\na=web.Application(); a.router.add_get("/",h)\ns=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); s.load_cert_chain("{c}","{k}")\nweb.run_app(a,host="127.0.0.1",port=27316,ssl_context=s,keepalive_timeout=1,print=None)\n')
    start(sys.executable, a); wait_port(27316); run('aiohttp-tls', 27316, Https, .3, 2.5)
def node():
    j = write('n.js', 'const h=require("http");const s=h.createServer((q,r)=>{if(q.url=="/204"){r.statusCode=204;r.end()}else if(q.url=="/close"){r.setHeader("Connection","close");r.statusCode=204;r.end()}else r.end("ok")});s.keepAliveTimeout=1000;s.listen(27317,"127.0.0.1")')
    start('node', j); wait_port(27317)
    class N204(Http): path = '/204'
    class NClose(Http): path = '/close'
    run('node', 27317, Http, .3, 3); run('node-204', 27317, N204, .3, 3)
    def reuse_after_close():   # asks again at once, although the server closes
        for i in range(N):
            p = NClose(); s = connect(27317, p); p.ask(s); me, you = addr(s), peer(s); time.sleep(.02)
            try: p.ask(s); lost = False
            except (OSError, EOFError): lost = True
            s.close(); say(kind='node-close-reuse', local=me, peer=you, gap=.02, lost=lost)
    reuse_after_close()
    class N2(Http):
        n = 0
        def ask(self, s): self.path = '/204' if self.n == 0 else '/close'; self.n += 1; Http.ask(self, s)
    run('node-closing-answer', 27317, N2, .3, 1.9)
def gunicorn():
    write('wsgi.py', 'def app(e, s):\n s("200 OK", [("Content-Length","2")]); return [b"ok"]\n')
    start(B + 'gunicorn', '--chdir', D, '-b', '127.0.0.1:27318', '-k', 'gthread', '--threads', '8', '--keep-alive', '60', '--max-requests', '40', '-w', '2', 'wsgi:app'); wait_port(27318); run('gunicorn-recycle', 27318, Http, .3, 2, n=2 * N, times=3)
def nginx():
    cf = write('ng.conf', f'daemon off; error_log {D}/e.log; pid {D}/ng.pid; events {{}} http {{ access_log off; client_body_temp_path {D}/b; proxy_temp_path {D}/p; fastcgi_temp_path {D}/f; uwsgi_temp_path {D}/u; scgi_temp_path {D}/s; keepalive_timeout 1s; server {{ listen 127.0.0.1:27319; keepalive_requests 1000; location / {{ return 200 ok; }} }} server {{ listen 127.0.0.1:27320; keepalive_requests 2; keepalive_timeout 60s; location / {{ return 200 ok; }} }} }}')
    start('nginx', '-c', cf); wait_port(27319); run('nginx', 27319, Http, .3, 2); 
    def limit():
        for i in range(N):
            p = Http(); s = connect(27320, p); p.ask(s); p.ask(s); me, you = addr(s), peer(s); time.sleep(random.choice([0, .02]))
            try: p.ask(s); lost = False
            except (OSError, EOFError): lost = True
            s.close(); say(kind='nginx-limit', local=me, peer=you, gap=0, lost=lost)
    limit()
def apache():
    cf = write('ap.conf', f'ServerName x\nServerRoot {D}\nLoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\nLoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\nListen 127.0.0.1:27321\nPidFile {D}/ap.pid\nErrorLog {D}/ap.log\nKeepAlive On\nKeepAliveTimeout 1\nDocumentRoot {D}/www\n<Directory {D}/www>\nRequire all granted\n</Directory>\n'); os.mkdir(D + '/www'); write('www/index.html', 'ok'); os.chmod(D, 0o755)
    class A(Http): path = '/index.html'
    start('apache2', '-f', cf, '-DFOREGROUND'); wait_port(27321); run('apache', 27321, A, .3, 2)
class Smtp(Proto):
    def setup(self, s): recv_until(s, lambda b: b.endswith(b'\r\n'))
    def ask(self, s):
        s.sendall(b'HELO x\r\n'); b = recv_until(s, lambda b: b.endswith(b'\r\n'))
        if not b.startswith(b'250'): raise EOFError(b)
    def bye(self, s): s.sendall(b'QUIT\r\n')
def postfix():
    c, q = D + '/pf', D + '/pfq'
    for d in (c, q, D + '/pfd'): os.mkdir(d)
    subprocess.run(['chown', 'postfix', D + '/pfd'], check=True)
    write('pf/main.cf', f'compatibility_level=3.6\nqueue_directory={q}\ndata_directory={D}/pfd\nmyhostname=x.example\nmydestination=\nsmtpd_timeout=1s\nsmtpd_client_connection_count_limit=0\nmaillog_file={D}/pf.log\nmaillog_file_prefixes={D}\nalias_maps=\n')
    write('pf/master.cf', '127.0.0.1:27322 inet n - n - 100 smtpd\npostlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\nproxymap unix - - n - - proxymap\nrewrite unix - - n - - trivial-rewrite\ntlsmgr unix - - n 1000? 1 tlsmgr\n')
    subprocess.run(['postfix', '-c', c, 'check'], check=True, capture_output=True)
    start('/usr/lib/postfix/sbin/master', '-d', '-c', c); wait_port(27322); run('postfix', 27322, Smtp, .3, 2, bye=True)
def httpx():
    """Its pool does not look. A request past the server's GOAWAY is lost on that connection and sent again on another."""
    c, k = cert(); cf = write('h2.conf', f'daemon off; error_log {D}/e2.log; pid {D}/h2.pid; events {{}} http {{ access_log off; client_body_temp_path {D}/b2; proxy_temp_path {D}/p2; fastcgi_temp_path {D}/f2; uwsgi_temp_path {D}/u2; scgi_temp_path {D}/s2; keepalive_timeout 1s; server {{ listen 127.0.0.1:27323 ssl http2; ssl_certificate {c}; ssl_certificate_key {k}; location / {{ return 200 ok; }} }} }}')
    start('nginx', '-c', cf); wait_port(27323)
    import httpx
    def requests(gap):
        client = httpx.Client(http2=True, verify=False, limits=httpx.Limits(keepalive_expiry=60))
        for _ in range(4):
            kind, lost, ends = 'httpx-h2', False, None
            try:
                with client.stream('GET', 'https://127.0.0.1:27323/') as answer:
                    assert answer.http_version == 'HTTP/2'
                    stream = answer.extensions['network_stream']; answer.read()
                    ends = ['%s:%d' % stream.get_extra_info(end)[:2] for end in ('client_addr', 'server_addr')]
            except httpx.HTTPError: lost = True
            if ends: say(kind=kind, local=ends[0], peer=ends[1], gap=gap, lost=lost)
            else: say(kind=kind, error='a request failed of which no connection is known')
            time.sleep(gap)
        client.close()
    ts = [threading.Thread(target=requests, args=(g,)) for g in (.3, .7, .9, .95, 1.0, 1.05, 1.1, 1.3, 1.6, 2.0)]; [t.start() for t in ts]; [t.join() for t in ts]
def many():
    """18,000 connections that are used again within a minute hide nothing of those whose requests are lost."""
    start('redis-server', '--port', '27324', '--save', '', '--dir', D, '--maxclients', '19900', '--protected-mode', 'no', '--bind', '127.0.0.1')
    start('redis-server', '--port', '27325', '--timeout', '1', '--save', '', '--dir', D); wait_port(27324); wait_port(27325)
    open_ = []
    for i in range(18000):
        s = socket.socket(); s.bind((f'127.0.1.{1 + i % 9}', 0)); s.connect(('127.0.0.1', 27324)); open_.append(s)
    for _ in range(2):
        for s in open_: s.sendall(b'GET k\r\n')
        for s in open_: recv_until(s, lambda b: b.endswith(b'\r\n'))
        time.sleep(.5)
    run('many', 27325, Redis, .3, 3)
    for s in open_: s.close()
ALL = ['redis', 'memcached', 'postgres', 'pgbouncer', 'mariadb', 'slapd', 'mosquitto', 'haproxy', 'haproxy_tcp', 'uvicorn', 'aiohttp',
       'node', 'gunicorn', 'nginx', 'apache', 'postfix', 'httpx', 'many']
def judge(lines, verdicts):
    """Prints the table; whether nothing was missed, doubled or made up, and no verdict denies a loss or makes one up."""
    told = collections.defaultdict(list); incidents = collections.defaultdict(list)
    for line in lines:
        key = (line['local'], line['peer']) if line['role'] == 'client' else (line['peer'], line['local'])
        {'race': told, 'incident': incidents}.get(line['event'], collections.defaultdict(list))[key].append(line)
    rows = {}; details = []
    for t in truth:
        row = rows.setdefault(t['kind'], collections.Counter())
        if 'error' in t: row['error'] += 1; details.append(f"{t['kind']}: {t['error']}"); continue
        key = t['local'], t['peer']; races = told[key]; row['n'] += 1
        what = ('right' if len(races) == 1 else 'doubled' if races else 'missed') if t['lost'] else 'false' if races else None
        row['lost'] += t['lost']
        if what: row[what] += 1
        for r in races:
            row[r['class']] += 1
            row['no outcome'] += r['outcome'] == 'unknown'
        if what in ('missed', 'doubled', 'false'):
            seen = ', '.join(f"{x['role']} {x['class']}" for x in races + incidents[key]) or 'nothing'
            details.append(f"{t['kind']}: {what}, gap {t['gap']:.3f} s, {key[0]} -> {key[1]}: {seen}")
    columns = ['n', 'lost', 'right', 'missed', 'doubled', 'false', 'no outcome', 'error']
    print('kind'.ljust(22) + ''.join(c.rjust(11) for c in columns) + '  classes')
    for kind, row in rows.items():
        classes = ', '.join(f'{k} {v}' for k, v in row.items() if k not in columns)
        print(kind.ljust(22) + ''.join(str(row[c]).rjust(11) for c in columns) + '  ' + classes)
    print('\n'.join(details[:40]))
    lost = collections.Counter()
    for t in truth: lost[t.get('peer')] += bool(t.get('lost'))
    wrong = 0
    for peer, n in lost.items():
        if peer is None: continue
        said = verdicts.get(peer, 'nothing'); is_loss = said in ('racing', 'dropping', 'losing', 'leaking')
        if is_loss != (n > 0): wrong += 1; print(f'{peer}: {n} lost, and the verdict is {said}')
    print(f'{len(lost)} verdicts, {wrong} wrong')
    return not wrong and not any(row[c] for row in rows.values() for c in ('missed', 'doubled', 'false', 'no outcome', 'error'))
def main():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))     # 20,000 are enough for `many`
    with open(os.path.join(D, 'watch.json'), 'w+') as out, open(os.path.join(D, 'watch.err'), 'w+') as err:
        serve = subprocess.Popen([sys.argv[1], 'serve', '--web.listen-address', '127.0.0.1:27399'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_port(27399)
        watch = subprocess.Popen([sys.argv[1], 'watch', '--json'], stdout=out, stderr=err)
        while 'attached' not in open(err.name).read():
            if watch.poll() is not None: sys.exit(open(err.name).read())
            time.sleep(.1)
        try:
            for name in sys.argv[2:] or ALL:
                try: globals()[name]()
                except BaseException as e: say(kind=name, error=repr(e))
        finally:
            for p in reversed(procs): p.terminate()
            for p in procs:
                try: p.wait(5)
                except subprocess.TimeoutExpired: p.kill()
        time.sleep(4)      # a race is told at most 3 s after its outcome
        with urllib.request.urlopen('http://127.0.0.1:27399/api/v1/peers') as answer: peers = json.load(answer)['peers']
        verdicts = {p['peer']: p['verdict'] for p in peers if p['role'] == 'client'}
        for p in (serve, watch): p.send_signal(signal.SIGINT); p.wait(20)
        out.seek(0); return judge([json.loads(line) for line in out], verdicts)
sys.exit(0 if main() else 1)
