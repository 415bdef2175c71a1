//! Load balancers of cloud providers. None of them runs on a host that we watch.
//!
//! Towards servers most are fixed at a time that is longer than what servers wait by default: so
//! it is the server that has to be changed.

use super::{Default, HTTP, Knob, Side, Software, Unit};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "AWS Application Load Balancer",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "idle_timeout.timeout_seconds",
                place: "the attributes of the load balancer",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "aws elbv2 modify-load-balancer-attributes --load-balancer-arn $ARN \
                    --attributes Key=idle_timeout.timeout_seconds,Value={}",
                note: "1 to 4000 seconds, and the same towards clients. The client keepalive \
                    duration beside it is for a connection's age.",
                source: "AWS documentation, \"Edit attributes for your Application Load Balancer\"",
            },
            Knob {
                side: Side::Server,
                name: "idle_timeout.timeout_seconds",
                place: "the attributes of the load balancer",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "aws elbv2 modify-load-balancer-attributes --load-balancer-arn $ARN \
                    --attributes Key=idle_timeout.timeout_seconds,Value={}",
                note: "1 to 4000 seconds, and the same towards targets. The client keepalive \
                    duration beside it is for a connection's age.",
                source: "AWS documentation, \"Edit attributes for your Application Load Balancer\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "AWS Classic Load Balancer",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "ConnectionSettings.IdleTimeout",
                place: "the attributes of the load balancer",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "aws elb modify-load-balancer-attributes --load-balancer-name $NAME \
                    --load-balancer-attributes '{\"ConnectionSettings\":{\"IdleTimeout\":{}}}'",
                note: "The same towards clients. TCP keep-alive probes do not count as traffic.",
                source: "AWS documentation, \"Configure the idle connection timeout for your \
                    Classic Load Balancer\"",
            },
            Knob {
                side: Side::Server,
                name: "ConnectionSettings.IdleTimeout",
                place: "the attributes of the load balancer",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "aws elb modify-load-balancer-attributes --load-balancer-name $NAME \
                    --load-balancer-attributes '{\"ConnectionSettings\":{\"IdleTimeout\":{}}}'",
                note: "The same towards instances. TCP keep-alive probes do not count as traffic.",
                source: "AWS documentation, \"Configure the idle connection timeout for your \
                    Classic Load Balancer\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Amazon CloudFront",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "OriginKeepaliveTimeout",
            place: "the configuration of the custom origin",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Seconds,
            line: "\"OriginKeepaliveTimeout\": {}",
            note: "1 second or more, up to what the quota allows.",
            source: "AWS documentation, \"originKeepaliveTimeout\" of the CloudFront API",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Google Cloud global external Application Load Balancer",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed: servers have to wait for longer, such as 620 seconds.",
                source: "Google Cloud documentation, \"Request distribution for external \
                    Application Load Balancers\"",
            },
            Knob {
                side: Side::Server,
                name: "httpKeepAliveTimeoutSec",
                place: "the target proxy",
                defaults: &[Default { seconds: Some(610.0), since: "" }],
                unit: Unit::Seconds,
                line: "gcloud compute target-http-proxies update $PROXY --global \
                    --http-keep-alive-timeout-sec={}",
                note: "5 to 1200 seconds; not for the classic kind. Towards backends it is fixed.",
                source: "Google Cloud documentation, \"Request distribution for external \
                    Application Load Balancers\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Google Cloud regional external Application Load Balancer",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed: servers have to wait for longer, such as 620 seconds.",
                source: "Google Cloud documentation, \"Request distribution for external \
                    Application Load Balancers\"",
            },
            Knob {
                side: Side::Server,
                name: "httpKeepAliveTimeoutSec",
                place: "the regional target proxy",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Seconds,
                line: "gcloud compute target-http-proxies update $PROXY --region=$REGION \
                    --http-keep-alive-timeout-sec={}",
                note: "5 to 600 seconds. Towards backends it is fixed.",
                source: "Google Cloud documentation, \"Request distribution for external \
                    Application Load Balancers\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Azure Application Gateway",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Server,
            name: "",
            place: "",
            defaults: &[Default { seconds: Some(120.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Fixed; older versions of its page say 75 seconds for v2. Besides, its \
                    public address has a TCP idle timeout of 4 minutes.",
            source: "Microsoft documentation, \"Frequently asked questions about Application \
                    Gateway\"",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Azure Front Door",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(90.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed.",
                source: "MicrosoftDocs/azure-docs includes/front-door-limits.md (2021-09), \
                    \"Timeout values\"",
            },
            Knob {
                side: Side::Server,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(61.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed.",
                source: "MicrosoftDocs/azure-docs includes/front-door-limits.md (2021-09), \
                    \"Timeout values\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Oracle Cloud load balancer",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(300.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed: servers have to wait for longer, at least 310 seconds.",
                source: "Oracle documentation, \"Load Balancer Timeout Connection Settings\"",
            },
            Knob {
                side: Side::Server,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(65.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed. The idle timeout of a listener is for a request under way.",
                source: "Oracle documentation, \"Load Balancer Timeout Connection Settings\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Heroku Router",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "",
            place: "",
            defaults: &[Default { seconds: Some(90.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Fixed. Router 2.0 only: the one before keeps no connection to dynos.",
            source: "heroku/python-getting-started#261, from Heroku's documentation, \"HTTP \
                    Routing\"",
        }],
        no_reuse: "heroku labs:enable http-disable-keepalive-to-dyno",
        retry: "",
    },
    Software {
        name: "Cloudflare",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(900.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed: \"Proxy Idle Timeout\".",
                source: "Cloudflare documentation, \"Connection limits\"",
            },
            Knob {
                side: Side::Server,
                name: "",
                place: "",
                defaults: &[Default { seconds: Some(400.0), since: "" }],
                unit: Unit::Seconds,
                line: "",
                note: "Fixed: \"Connection Keep-Alive HTTP/1.1\".",
                source: "Cloudflare documentation, \"Connection limits\"",
            },
        ],
        no_reuse: "",
        retry: "",
    },
];
