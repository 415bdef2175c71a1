//! What forgets connections and sends no FIN: tables of the kernel and of clouds.

use super::{ANY, Default, Knob, Side, Software, Unit};

/// For a Gateway Load Balancer; for others, with a different note and source.
const AWS_LISTENER: Knob = Knob {
    side: Side::Middlebox,
    name: "tcp.idle_timeout.seconds",
    place: "the attributes of the listener",
    defaults: &[Default { seconds: Some(350.0), since: "" }],
    unit: Unit::Seconds,
    line: "aws elbv2 modify-listener-attributes --listener-arn $ARN --attributes \
        Key=tcp.idle_timeout.seconds,Value={}",
    note: "60 to 6000 seconds.",
    source: "AWS documentation, \"Update the TCP idle timeout for your Gateway Load Balancer \
        listener\"",
};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "Linux conntrack",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "nf_conntrack_tcp_timeout_established",
            place: "`/etc/sysctl.d/` of the host that forwards",
            defaults: &[Default { seconds: Some(432_000.0), since: "" }],
            unit: Unit::Seconds,
            line: "net.netfilter.nf_conntrack_tcp_timeout_established = {}",
            note: "Firewalls and routers that are built on Linux set it far lower.",
            source: "Linux 2c55d703391a Documentation/networking/nf_conntrack-sysctl.rst, \
                \"nf_conntrack_tcp_timeout_established\"",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "kube-proxy",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "conntrack.tcpEstablishedTimeout",
            place: "the ConfigMap `kube-proxy`",
            defaults: &[Default { seconds: Some(86_400.0), since: "" }],
            unit: Unit::Seconds,
            line: "tcpEstablishedTimeout: {}s",
            note: "It sets the node's `nf_conntrack_tcp_timeout_established`. In mode `ipvs`, IPVS \
                has 15 minutes of its own.",
            source: "Kubernetes 04791b490660 pkg/proxy/apis/config/v1alpha1/defaults.go, \
                `TCPEstablishedTimeout`",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "IPVS",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "ipvsadm --set",
            place: "",
            defaults: &[Default { seconds: Some(900.0), since: "" }],
            unit: Unit::Seconds,
            line: "ipvsadm --set {} 0 0",
            note: "0 leaves the other two, for connections with a FIN and for UDP, as they are. \
                kube-router has `--service-tcp-timeout`.",
            source: "Linux net/netfilter/ipvs/ip_vs_proto_tcp.c, `tcp_timeouts`; kube-router \
                2.11.0 docs/user-guide.md:184",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "AWS Gateway Load Balancer",
        protocols: ANY,
        processes: &[],
        knobs: &[AWS_LISTENER],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Google Cloud VPC",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "",
            place: "",
            defaults: &[Default { seconds: Some(600.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Fixed: the firewall drops what comes after ten minutes without a packet. TCP \
                keep-alive probes more often than that keep a connection.",
            source: "Google Cloud documentation, troubleshooting of Compute Engine, on the \
                connection tracking of VPC networks",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Google Cloud NAT",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "tcpEstablishedIdleTimeoutSec",
            place: "the NAT of the Cloud Router",
            defaults: &[Default { seconds: Some(1200.0), since: "" }],
            unit: Unit::Seconds,
            line: "gcloud compute routers nats update $NAT --router=$ROUTER --region=$REGION \
                --tcp-established-idle-timeout={}s",
            note: "The VPC's own firewall forgets connections after ten minutes.",
            source: "Google Cloud documentation, `tcpEstablishedIdleTimeoutSec` of the Compute \
                Engine API's `RouterNat`",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Azure NAT gateway",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "idleTimeoutInMinutes",
            place: "the NAT gateway",
            defaults: &[Default { seconds: Some(240.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "In minutes, 4 to 120: `az network nat gateway update --idle-timeout`.",
            source: "Microsoft documentation, `idleTimeoutInMinutes` of \
                `ManagedClusterNATGatewayProfile`",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "AWS Network Load Balancer",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            note: "60 to 6000 seconds; fixed for TLS listeners. It sends no FIN: what comes \
                    later is answered by RST.",
            source: "AWS documentation, \"Update the TCP idle timeout for your Network Load \
                    Balancer listener\"; istio/istio#16572",
            ..AWS_LISTENER
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "AWS NAT gateway",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "",
            place: "",
            defaults: &[Default { seconds: Some(350.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Fixed. It sends no FIN: what comes later is answered by RST. TCP keep-alive \
                    probes more often than that keep a connection.",
            source: "AWS documentation, as quoted in istio/istio#36499",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "AWS Network Firewall",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "TcpIdleTimeoutSeconds",
            place: "the flow timeouts of the firewall policy",
            defaults: &[Default { seconds: Some(350.0), since: "" }],
            unit: Unit::Seconds,
            line: "\"FlowTimeouts\": { \"TcpIdleTimeoutSeconds\": {} }",
            note: "60 to 6000 seconds. It sends no FIN: what comes later is dropped.",
            source: "AWS documentation, \"FlowTimeouts\" of the Network Firewall API",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Azure Load Balancer",
        protocols: ANY,
        processes: &[],
        knobs: &[Knob {
            side: Side::Middlebox,
            name: "idleTimeoutInMinutes",
            place: "the load balancing rule",
            defaults: &[Default { seconds: Some(240.0), since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "In minutes, 4 to 100: `az network lb rule update --idle-timeout`. It drops \
                    connections without a word, unless `--enable-tcp-reset true` has it send RST \
                    at once.",
            source: "Microsoft documentation, \"Configure TCP reset and idle timeout for Azure \
                    Load Balancer\" and \"Load Balancer TCP Reset and Idle Timeout\"",
        }],
        no_reuse: "",
        retry: "",
    },
];
