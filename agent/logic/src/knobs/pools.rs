//! Pools of connections to databases, caches and mail servers. They run inside other programs' processes,
//! whose name is the language's at best: so a pool is recognised only if what was measured is its default.
//!
//! Many limit the age of a connection and not how long it is idle. A limit on age below the
//! server's idle timeout does as well: nothing is idle for longer than it is old.

use super::{Default, Knob, Protocol, SQL, Side, Software, Unit};

/// The setting that makes this software test a connection before it is used.
pub fn test_of(name: &str) -> Option<&'static str> {
    match name {
        "SQLAlchemy" => Some("pool_pre_ping"),
        "Apache Commons DBCP2" | "Jedis" => Some("testOnBorrow"),
        "psycopg_pool" => Some("check"),
        "sqlx" => Some("test_before_acquire"),
        "redis-py" => Some("health_check_interval"),
        _ => None,
    }
}

pub(super) const ALL: &[Software] = &[
    Software {
        name: "HikariCP",
        protocols: SQL,
        processes: &["java"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "maxLifetime",
                place: "the program (Spring Boot: `spring.datasource.hikari.max-lifetime`)",
                defaults: &[Default { seconds: Some(1800.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "maxLifetime={}",
                note: "At least 30 seconds. `idleTimeout` closes nothing unless `minimumIdle` is \
                    below `maximumPoolSize`. `keepaliveTime` tests idle connections: off by \
                    default up to 6.0, 2 minutes later. What was idle for over half a second is \
                    tested before it is used.",
                source: "HikariCP 6.0.0 src/main/java/com/zaxxer/hikari/HikariConfig.java:56, \
                    pool/HikariPool.java:65; brettwooldridge/HikariCP#2394",
            },
            Knob {
                side: Side::Client,
                name: "idleTimeout",
                place: "the program (Spring Boot: `spring.datasource.hikari.idle-timeout`)",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "idleTimeout={}",
                note: "At least 10 seconds, and up to 30 late. It closes nothing unless \
                    `minimumIdle` is below `maximumPoolSize`.",
                source: "HikariCP 6.0.0 src/main/java/com/zaxxer/hikari/HikariConfig.java:55; \
                    README.md:193",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "SQLAlchemy",
        protocols: SQL,
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "pool_recycle",
            place: "the program, passed to `create_engine()`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "create_engine(url, pool_recycle={}, pool_pre_ping=True)",
            note: "Of a connection's age, looked at when it is taken from the pool. \
                `pool_pre_ping` tests each as it is taken.",
            source: "SQLAlchemy 2.1.9 sqlalchemy/pool/base.py:170",
        }],
        no_reuse: "create_engine(url, poolclass=NullPool)",
        retry: "",
    },
    Software {
        name: "Go database/sql",
        protocols: SQL,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "SetConnMaxIdleTime",
            place: "the program, on the `sql.DB`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "db.SetConnMaxIdleTime({} * time.Millisecond)",
            note: "Not `SetConnMaxLifetime`, which is for a connection's age, nor \
                `SetMaxIdleConns`, which is for their number.",
            source: "Go 1.19.8 src/database/sql/sql.go:1031",
        }],
        no_reuse: "db.SetMaxIdleConns(-1)",
        retry: "done by itself, where the driver says `driver.ErrBadConn`",
    },
    Software {
        name: "Apache Commons DBCP2",
        protocols: SQL,
        processes: &["java"],
        knobs: &[Knob {
            side: Side::Client,
            name: "maxConnLifetimeMillis",
            place: "the properties of `BasicDataSource`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "maxConnLifetimeMillis={}",
            note: "Of a connection's age. Idle ones are closed after \
                `minEvictableIdleTimeMillis` (30 minutes) only where \
                `timeBetweenEvictionRunsMillis` is set. `testOnBorrow` is on by default and needs \
                a `validationQuery` or a driver of JDBC 4.",
            source: "Commons DBCP 2.14.0 \
                src/main/java/org/apache/commons/dbcp2/BasicDataSource.java:336",
        }],
        no_reuse: "maxIdle=0",
        retry: "",
    },
    Software {
        name: "psycopg_pool",
        protocols: &[Protocol::Postgres],
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "max_lifetime",
            place: "the program, passed to `ConnectionPool()`",
            defaults: &[Default { seconds: Some(3600.0), since: "" }],
            unit: Unit::Seconds,
            line: "ConnectionPool(conninfo, max_lifetime={}, \
                check=ConnectionPool.check_connection)",
            note: "Of a connection's age. `max_idle` (10 minutes) only shrinks a pool that is \
                larger than `min_size`. `check` tests each connection as it is taken.",
            source: "psycopg_pool 3.3.3 psycopg_pool/pool.py:59",
        }],
        no_reuse: "NullConnectionPool(conninfo)",
        retry: "",
    },
    Software {
        name: "node-postgres",
        protocols: &[Protocol::Postgres],
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[Knob {
            side: Side::Client,
            name: "idleTimeoutMillis",
            place: "the program, passed to `new Pool()`",
            defaults: &[Default { seconds: Some(10.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "new Pool({ idleTimeoutMillis: {} })",
            note: "0 means no limit. Not `connectionTimeoutMillis`, which is for getting a \
                connection.",
            source: "pg-pool 3.14.0 index.js:99",
        }],
        no_reuse: "new Pool({ maxUses: 1 })",
        retry: "",
    },
    Software {
        name: "pgxpool",
        protocols: &[Protocol::Postgres],
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "MaxConnIdleTime",
            place: "the program, on the `pgxpool.Config`",
            defaults: &[Default { seconds: Some(1800.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "config.MaxConnIdleTime = {} * time.Millisecond",
            note: "Looked at once per `HealthCheckPeriod` (1 minute), so that an idle connection \
                is closed up to that much later. In the connection string: \
                `pool_max_conn_idle_time`.",
            source: "pgx 5.10.0 pgxpool/pool.go:23",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Npgsql",
        protocols: &[Protocol::Postgres],
        processes: &["dotnet", ".NET *"],
        knobs: &[Knob {
            side: Side::Client,
            name: "Connection Idle Lifetime",
            place: "the connection string",
            defaults: &[Default { seconds: Some(300.0), since: "" }],
            unit: Unit::Seconds,
            line: "Connection Idle Lifetime={}",
            note: "Looked at every `Connection Pruning Interval` (10 seconds), and never below \
                `Minimum Pool Size`. Not `Connection Lifetime`, which is for a connection's age.",
            source: "Npgsql 10.0.0 src/Npgsql/NpgsqlConnectionStringBuilder.cs:862",
        }],
        no_reuse: "Pooling=false",
        retry: "",
    },
    Software {
        name: "sqlx",
        protocols: &[Protocol::Postgres, Protocol::MySql],
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "idle_timeout",
            place: "the program, on `PoolOptions`",
            defaults: &[Default { seconds: Some(600.0), since: "" }],
            unit: Unit::Milliseconds,
            line: ".idle_timeout(Duration::from_millis({}))",
            note: "Not `max_lifetime` (30 minutes), which is for a connection's age. Each is \
                tested as it is taken, unless `test_before_acquire` is off.",
            source: "sqlx 0.8.6 sqlx-core/src/pool/options.rs:161",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Knex",
        protocols: SQL,
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[Knob {
            side: Side::Client,
            name: "idleTimeoutMillis",
            place: "the program, under `pool`",
            defaults: &[Default { seconds: Some(30.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "pool: { min: 0, idleTimeoutMillis: {} }",
            note: "As many as `min` are kept for ever: 0 has all of them closed.",
            source: "tarn 3.1.2 dist/Pool.js:75",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "mysql2",
        protocols: &[Protocol::MySql],
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[Knob {
            side: Side::Client,
            name: "idleTimeout",
            place: "the program, passed to `createPool()`",
            defaults: &[Default { seconds: Some(60.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "createPool({ connectionLimit: 10, maxIdle: 9, idleTimeout: {} })",
            note: "It closes nothing unless `maxIdle` is below `connectionLimit`: both are 10 by \
                default.",
            source: "mysql2 3.24.6 lib/pool_config.js:22, lib/base/pool.js:50",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Jedis",
        protocols: &[Protocol::Redis],
        processes: &["java"],
        knobs: &[Knob {
            side: Side::Client,
            name: "minEvictableIdleTime",
            place: "the program, on the `JedisPoolConfig`",
            defaults: &[Default { seconds: Some(60.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "config.setMinEvictableIdleTime(Duration.ofMillis({}));",
            note: "Looked at every `timeBetweenEvictionRuns` (30 seconds), so that a connection is \
                closed up to that much later. A `GenericObjectPoolConfig` in its place closes none.",
            source: "Jedis 7.5.3 \
                src/main/java/redis/clients/jedis/ConnectionPoolConfig.java:11",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "redis-py",
        protocols: &[Protocol::Redis],
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "health_check_interval",
            place: "the program, passed to `Redis()`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "Redis(health_check_interval={})",
            note: "It closes nothing: a connection that was idle for longer is sent a PING before \
                it is used.",
            source: "redis-py 8.1.0 redis/connection.py:820",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "node-redis",
        protocols: &[Protocol::Redis],
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[Knob {
            side: Side::Client,
            name: "pingInterval",
            place: "the program, passed to `createClient()`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "createClient({ pingInterval: {} })",
            note: "It closes nothing: a PING as often as that keeps the one connection in use.",
            source: "@redis/client 6.3.1 dist/lib/client/index.js:693",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "pymemcache",
        protocols: &[Protocol::Memcached],
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "pool_idle_timeout",
            place: "the program, passed to `PooledClient()`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "PooledClient(server, pool_idle_timeout={})",
            note: "0 means no limit. Looked at when a connection is taken from the pool.",
            source: "pymemcache 4.0.0 pymemcache/client/base.py:1354, pymemcache/pool.py:77",
        }],
        no_reuse: "",
        retry: "RetryingClient(client, attempts=2, retry_for=[MemcacheUnexpectedCloseError])",
    },
    Software {
        name: "MongoDB drivers",
        protocols: &[Protocol::MongoDb],
        processes: &["java", "node", "MainThread", "node-MainThread", "python*", "dotnet"],
        knobs: &[Knob {
            side: Side::Client,
            name: "maxIdleTimeMS",
            place: "the connection string",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "maxIdleTimeMS={}",
            note: "By default there is no limit.",
            source: "MongoDB specifications 92b3c0b92 \
                source/connection-monitoring-and-pooling/connection-monitoring-and-pooling.md:102; \
                mongodb 7.9.0 lib/cmap/connection_pool.js:90; pymongo 4.20.1 pymongo/common.py:103",
        }],
        no_reuse: "",
        retry: "retryWrites=true&retryReads=true, which is the default",
    },
    Software {
        name: "Nodemailer",
        protocols: &[Protocol::Smtp],
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[Knob {
            side: Side::Client,
            name: "idleTimeout",
            place: "the program, passed to `createTransport()` with `pool: true`",
            defaults: &[
                Default { seconds: Some(240.0), since: "10" },
                Default { seconds: Some(600.0), since: "" },
            ],
            unit: Unit::Milliseconds,
            line: "createTransport({ pool: true, idleTimeout: {} })",
            note: "Not known to 9 and older, which have `socketTimeout` alone; that holds during a \
                message as well.",
            source: "Nodemailer 10.6.1 dist/cjs/smtp-pool/index.js:86; 9.0.5 \
                lib/smtp-connection/index.js",
        }],
        no_reuse: "",
        retry: "",
    },
];
