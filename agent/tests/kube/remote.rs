//! Remote ends, by Services and by pods.

use serde_json::{Value, json};

use super::server::{PODS, SERVICES};
use super::{
    Files, Server, asked, errors, ip, is_up, names_of, objects, pod, quick, remote, status_of, uid,
    until,
};
use finrace::kube::{Pace, Reason};

fn service(number: u32, spec: Value) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": format!("svc-{number}"), "namespace": "shop", "uid": uid(number)},
        "spec": spec, "status": {"loadBalancer": {}},
    })
}

fn http(ip: &str) -> Value {
    json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]})
}

#[tokio::test]
async fn services_are_named_by_address_and_port() {
    let (server, _files, names) = asked("--kube.remote services", |world| {
        world.put(PODS, pod(1));
        let both = json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd01::1"],
            "externalIPs": ["203.0.113.7"],
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]});
        world.put(SERVICES, service(1, both));
        // One shares the address with another port, one has no address, one is only a name.
        let shared = json!({"clusterIP": "10.96.0.2", "externalIPs": ["203.0.113.7"],
            "ports": [{"port": 443, "protocol": "TCP"}]});
        world.put(SERVICES, service(2, shared));
        world.put(SERVICES, service(3, json!({"clusterIP": "None", "ports": [{"port": 80}]})));
        let elsewhere = json!({"type": "ExternalName", "externalName": "example.com"});
        world.put(SERVICES, service(4, elsewhere));
        let mut balanced = service(5, http("10.96.0.5"));
        balanced["status"]["loadBalancer"]["ingress"] =
            json!([{"ip": "203.0.113.9"}, {"hostname": "lb.example.com"}]);
        world.put(SERVICES, balanced);
    })
    .await;
    until(&names, |names| is_up(names) && objects(names, "service") == 3).await;
    assert_eq!(remote(&names, "10.96.0.1", 80), "shop/svc-1/");
    assert_eq!(remote(&names, "::ffff:10.96.0.1", 80), "shop/svc-1/", "as a socket may have it");
    assert_eq!(remote(&names, "fd01::1", 80), "shop/svc-1/");
    assert_eq!(remote(&names, "10.96.0.1", 81), "");
    assert_eq!(remote(&names, "10.96.0.1", 53), "", "a datagram's");
    assert_eq!(remote(&names, "203.0.113.7", 80), "shop/svc-1/");
    assert_eq!(remote(&names, "203.0.113.7", 443), "shop/svc-2/");
    assert_eq!(remote(&names, "203.0.113.9", 80), "shop/svc-5/");
    assert_eq!(remote(&names, &ip(1), 80), "", "pods were not asked for");
    server.with(|world| {
        world.delete(SERVICES, "svc-5");
        world.put(SERVICES, service(1, http("10.96.0.77")));
        world.put(SERVICES, service(6, http("10.96.0.5")));
    });
    until(&names, |names| remote(names, "10.96.0.5", 80) == "shop/svc-6/").await;
    assert_eq!(remote(&names, "10.96.0.77", 80), "shop/svc-1/");
}

#[tokio::test]
async fn pods_of_the_whole_cluster_come_in_pages() {
    let (server, _files, names) = asked("--kube.remote pods", |world| {
        for number in 0..250 {
            let mut far = pod(number);
            far["spec"]["nodeName"] = json!("node-b");
            world.put(PODS, far);
        }
        // The node's address belongs to no pod; neither does one that a pod used to have.
        let mut host = pod(300);
        host["spec"]["hostNetwork"] = json!(true);
        world.put(PODS, host);
        let mut done = pod(301);
        done["status"]["phase"] = json!("Succeeded");
        world.put(PODS, done);
        world.put(SERVICES, service(1, http("10.96.0.1")));
    })
    .await;
    until(&names, |names| is_up(names) && objects(names, "remote_pod") == 250).await;
    assert_eq!(remote(&names, &ip(249), 41234), "shop/web/web-5d4f8c7b9-00249");
    assert_eq!(remote(&names, "fd00::f9", 8080), "shop/web/web-5d4f8c7b9-00249");
    assert_eq!(remote(&names, &ip(300), 80), "");
    assert_eq!(remote(&names, &ip(301), 80), "");
    assert_eq!(remote(&names, "10.96.0.1", 80), "shop/svc-1/");
    assert_eq!(objects(&names, "remote_address"), 501);
    let pages = server.with(|world| (world.count("limit=100"), world.count("continue=")));
    assert_eq!(pages, (4, 2), "three of pods, one of Services");
    // The pod ends, and its address is given to the next one.
    server.with(|world| {
        let mut done = pod(249);
        done["status"]["phase"] = json!("Failed");
        world.put(PODS, done);
        let mut next = pod(400);
        next["status"]["podIP"] = json!(ip(249));
        next["status"]["podIPs"] = json!(null);
        world.put(PODS, next);
        world.delete(PODS, "web-5d4f8c7b9-00249");
    });
    until(&names, |names| remote(names, &ip(249), 1).ends_with("-00400")).await;
}

#[tokio::test]
async fn a_list_that_expires_between_two_pages_is_begun_again() {
    let (server, _files, names) = asked("--kube.remote pods", |world| {
        for number in 0..250 {
            world.put(PODS, pod(number));
        }
        // The first page is of a version that is immediately too old.
        world.expires_after_a_page = true;
    })
    .await;
    until(&names, |names| errors(names, Reason::Gone) > 0).await;
    server.with(|world| world.expires_after_a_page = false);
    until(&names, |names| is_up(names) && objects(names, "remote_pod") == 250).await;
}

#[tokio::test]
async fn there_is_a_bound_that_is_counted() {
    let server = Server::start().await;
    server.with(|world| {
        for number in 0..30 {
            world.put(PODS, pod(number));
            world.put(SERVICES, service(number, http(&format!("10.96.0.{number}"))));
        }
    });
    let files = Files::new(&format!("http://{}", server.address), "first");
    let pace = Pace { remote_max: 20, ..quick() };
    let names = names_of(&files, "--kube.remote pods", pace);
    until(&names, |names| is_up(names) && errors(names, Reason::Full) == 50).await;
    assert_eq!(objects(&names, "remote_address"), 40);
    assert_eq!((objects(&names, "service"), objects(&names, "remote_pod")), (20, 10));
    // This node's pods have a limit of their own.
    assert_eq!(objects(&names, "pod"), 30);
}

#[tokio::test]
async fn the_source_is_as_good_as_the_worst_of_its_kinds() {
    let (server, _files, names) = asked("--kube.remote services", |world| {
        world.put(PODS, pod(1));
        world.forbidden = vec![("list", SERVICES)];
    })
    .await;
    until(&names, |names| objects(names, "pod") == 1 && errors(names, Reason::Forbidden) > 1).await;
    let status = status_of(&names, "apiserver");
    assert_eq!((status.is_up, status.last_sync), (false, None));
    server.with(|world| world.forbidden.clear());
    until(&names, is_up).await;
}
