//! Servers of other protocols than HTTP: databases and the poolers in front of them, caches, brokers,
//! directories, mail.
//!
//! Most of them keep idle connections for ever by default, or for hours. A short timeout is then somebody's
//! setting, or that of a proxy or a middlebox on the path.

use super::{Default, Knob, Protocol, Side, Software, Unit};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "PostgreSQL",
        protocols: &[Protocol::Postgres],
        processes: &["postgres"],
        knobs: &[Knob {
            side: Side::Server,
            name: "idle_session_timeout",
            place: "`postgresql.conf`, or `ALTER ROLE ... SET`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "idle_session_timeout = {}ms",
            note: "0 means no limit; PostgreSQL 14 or later. Not \
                `idle_in_transaction_session_timeout`, which is for open transactions. A pool has \
                to close before it.",
            source: "PostgreSQL 15.18 at run time (postgres -C idle_session_timeout)",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "PgBouncer",
        protocols: &[Protocol::Postgres],
        processes: &["pgbouncer"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "server_idle_timeout",
                place: "`pgbouncer.ini`",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Fraction,
                line: "server_idle_timeout = {}",
                note: "Not `client_idle_timeout`, which holds towards applications. What was idle \
                    for over `server_check_delay` (30 seconds) is tested before it is used.",
                source: "PgBouncer 1.25.2 src/main.c:326",
            },
            Knob {
                side: Side::Server,
                name: "client_idle_timeout",
                place: "`pgbouncer.ini`",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Fraction,
                line: "client_idle_timeout = {}",
                note: "0 means no limit. It has to be longer than the pools of the applications \
                    keep connections. Not `server_idle_timeout`, which holds towards PostgreSQL.",
                source: "PgBouncer 1.25.2 src/main.c:274",
            },
        ],
        no_reuse: "server_lifetime = 0",
        retry: "",
    },
    Software {
        name: "MySQL and MariaDB",
        protocols: &[Protocol::MySql],
        processes: &["mysqld", "mariadbd"],
        knobs: &[Knob {
            side: Side::Server,
            name: "wait_timeout",
            place: "the `[mysqld]` section of `my.cnf`",
            defaults: &[Default { seconds: Some(28_800.0), since: "" }],
            unit: Unit::Seconds,
            line: "wait_timeout = {}",
            note: "Sessions of a terminal have `interactive_timeout` instead. A client may set its \
                own.",
            source: "MariaDB 10.11.19 at run time (mariadbd --no-defaults --help --verbose)",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "ProxySQL",
        protocols: &[Protocol::MySql],
        processes: &["proxysql"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "mysql-connection_max_age_ms",
                place: "the admin interface, then `LOAD MYSQL VARIABLES TO RUNTIME`",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "SET mysql-connection_max_age_ms={};",
                note: "0 means no limit. Of a connection's age, whether idle or not; idle ones are \
                    pinged every `mysql-ping_interval_server_msec` (10 seconds).",
                source: "ProxySQL 2.7.1 lib/MySQL_Thread.cpp:976",
            },
            Knob {
                side: Side::Server,
                name: "mysql-wait_timeout",
                place: "the admin interface, then `LOAD MYSQL VARIABLES TO RUNTIME`",
                defaults: &[Default { seconds: Some(28_800.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "SET mysql-wait_timeout={};",
                note: "In milliseconds, unlike `wait_timeout` of MySQL.",
                source: "ProxySQL 2.7.1 lib/MySQL_Thread.cpp:1035",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    // Both have the same setting.
    Software {
        name: "Redis and Valkey",
        protocols: &[Protocol::Redis],
        processes: &["redis-server", "valkey-server", "io_thd_*"],
        knobs: &[Knob {
            side: Side::Server,
            name: "timeout",
            place: "`redis.conf` or `valkey.conf`, or `CONFIG SET`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "timeout {}",
            note: "0 means no limit. Not `tcp-keepalive`, which finds clients that are gone.",
            source: "Redis 7.4.1 src/config.c:3165; Valkey 8.0.1 src/config.c:3186",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "memcached",
        protocols: &[Protocol::Memcached],
        processes: &["memcached", "mc-*"],
        knobs: &[Knob {
            side: Side::Server,
            name: "idle_timeout",
            place: "the command line",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "-o idle_timeout={}",
            note: "0 means no limit. A thread looks now and then, so that a connection is closed a \
                little later.",
            source: "memcached 1.6.45 memcached.c:256",
        }],
        no_reuse: "",
        retry: "",
    },
    // A library with a server, and both have a setting of the same name.
    Software {
        name: "Apache Kafka",
        protocols: &[Protocol::Kafka],
        processes: &["java", "data-plane-*", "kafka-*"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "connections.max.idle.ms",
                place: "`server.properties` of the broker",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "connections.max.idle.ms={}",
                note: "It has to be longer than that of the clients, which is 9 minutes by default.",
                source: "Kafka 3.8.0 \
                    server/src/main/java/org/apache/kafka/network/SocketServerConfigs.java:139",
            },
            Knob {
                side: Side::Client,
                name: "connections.max.idle.ms",
                place: "the properties of the producer or consumer",
                defaults: &[Default { seconds: Some(540.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "connections.max.idle.ms={}",
                note: "It has to be shorter than that of the broker, which is 10 minutes by default.",
                source: "Kafka 3.8.0 \
                    clients/src/main/java/org/apache/kafka/clients/producer/ProducerConfig.java:490",
            },
            Knob {
                side: Side::Client,
                name: "connections.max.idle.ms of AdminClient",
                place: "the properties of the admin client",
                defaults: &[Default { seconds: Some(300.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "connections.max.idle.ms={}",
                note: "It has to be shorter than that of the broker, which is 10 minutes by default.",
                source: "Kafka 3.8.0 \
                    clients/src/main/java/org/apache/kafka/clients/admin/AdminClientConfig.java:215",
            },
        ],
        no_reuse: "",
        retry: "retries=2147483647, which is the default of producers",
    },
    Software {
        name: "RabbitMQ",
        protocols: &[Protocol::Amqp, Protocol::Mqtt],
        processes: &["beam.smp"],
        knobs: &[Knob {
            side: Side::Server,
            name: "heartbeat",
            place: "`rabbitmq.conf`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Idle connections are kept while heartbeats come. The timeout is 60 seconds, \
                unless the client asks for less; a client that sends nothing for two to three \
                times as long is cut off.",
            source: "RabbitMQ 4.3.5 deps/rabbit/Makefile:28, \
                deps/rabbit_common/src/rabbit_heartbeat.erl",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Mosquitto",
        protocols: &[Protocol::Mqtt],
        processes: &["mosquitto"],
        knobs: &[Knob {
            side: Side::Server,
            name: "max_keepalive",
            place: "`mosquitto.conf`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "The client names its keepalive when it connects, and is cut off when nothing \
                comes for one and a half times as long; this only bounds it.",
            source: "Mosquitto 2.1.2 mosquitto.conf, \"max_keepalive\"; src/keepalive.c:39",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "OpenLDAP",
        protocols: &[Protocol::Ldap],
        processes: &["slapd"],
        knobs: &[Knob {
            side: Side::Server,
            name: "olcIdleTimeout",
            place: "`cn=config` (`idletimeout` of `slapd.conf`)",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "olcIdleTimeout: {}",
            note: "0 means no limit.",
            source: "OpenLDAP 2.6.14 servers/slapd/config.c:70",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Postfix",
        protocols: &[Protocol::Smtp],
        processes: &["smtpd", "smtp", "scache"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "smtpd_timeout",
                place: "`main.cf`",
                defaults: &[Default { seconds: Some(300.0), since: "" }],
                unit: Unit::Seconds,
                line: "smtpd_timeout = {}s",
                note: "Since 2.6 it falls to 10 seconds under load, unless it is set.",
                source: "Postfix 3.12-20260821 src/global/mail_params.h:1280, \
                    proto/postconf.proto:7170",
            },
            Knob {
                side: Side::Client,
                name: "smtp_connection_cache_time_limit",
                place: "`main.cf`",
                defaults: &[Default { seconds: Some(2.0), since: "" }],
                unit: Unit::Seconds,
                line: "smtp_connection_cache_time_limit = {}s",
                note: "Connections are cached for busy destinations only.",
                source: "Postfix 3.12-20260821 src/global/mail_params.h:1069",
            },
        ],
        no_reuse: "smtp_connection_cache_on_demand = no",
        retry: "",
    },
];
