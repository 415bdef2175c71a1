//! The protocols whose settings and words are known.

use crate::words;

words! {
    Protocol {
        Http = "http",
        Postgres = "postgresql",
        MySql = "mysql",
        SqlServer = "sql_server",
        Oracle = "oracle",
        Redis = "redis",
        Memcached = "memcached",
        MongoDb = "mongodb",
        Kafka = "kafka",
        Amqp = "amqp",
        Mqtt = "mqtt",
        Ldap = "ldap",
        Smtp = "smtp",
        /// Neither process nor port tells. Most of these are HTTP, and are treated as such.
        Unknown = "unknown",
    }
}

impl Protocol {
    /// The port's own protocol: as IANA has it, or as its servers use it by default.
    pub const fn of_port(port: u16) -> Self {
        match port {
            80 | 443 | 591 | 8008 | 8080 | 8443 => Self::Http,
            5432 | 6432 => Self::Postgres,
            3306 | 6033 => Self::MySql,
            1433 => Self::SqlServer,
            1521 | 2483 | 2484 => Self::Oracle,
            6379 | 6380 => Self::Redis,
            11211 => Self::Memcached,
            27017..=27019 => Self::MongoDb,
            9092 => Self::Kafka,
            5671 | 5672 => Self::Amqp,
            1883 | 8883 => Self::Mqtt,
            389 | 636 | 3268 | 3269 => Self::Ldap,
            25 | 465 | 587 => Self::Smtp,
            _ => Self::Unknown,
        }
    }

    /// Whether proxies, which keep connections for a minute or so, stand in front of its servers. For the
    /// others the client is a pool, and most pools keep connections for as long as they can.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Unknown)
    }

    /// Whether an idle connection is kept by heartbeats, and closed for want of them.
    pub const fn has_heartbeats(self) -> bool {
        matches!(self, Self::Amqp | Self::Mqtt)
    }

    /// What its users call requests.
    pub const fn requests(self) -> &'static str {
        match self {
            Self::Http | Self::Kafka | Self::Unknown => "requests",
            Self::Postgres | Self::MySql | Self::SqlServer | Self::Oracle => "statements",
            Self::Redis | Self::Memcached | Self::Smtp => "commands",
            Self::MongoDb | Self::Ldap => "operations",
            Self::Amqp | Self::Mqtt => "messages",
        }
    }
}
