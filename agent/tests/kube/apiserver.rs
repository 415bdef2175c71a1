//! This node's pods from the API server.

use serde_json::json;

use super::server::{PODS, World};
use super::{
    NODE, asked, clock, container_id, errors, is_up, local, objects, pod, start, status_of, uid,
    until,
};
use finrace::kube::{Account, Reason};

#[tokio::test]
async fn the_pods_of_this_node_are_named_by_container_and_by_uid() {
    let (server, _files, names) = asked("", |world| {
        world.put(PODS, pod(1));
        let mut other = pod(2);
        other["spec"]["nodeName"] = json!("node-b");
        world.put(PODS, other);
    })
    .await;
    until(&names, is_up).await;
    let (id, unknown) = (container_id(1), container_id(99));
    let whole = "shop/web/web-5d4f8c7b9-00001/app";
    assert_eq!(local(&names, None, Some(&id)), whole);
    assert_eq!(local(&names, Some(&uid(1)), Some(&id)), whole);
    // As in systemd's cgroups; and a container that the status does not list, like the pause container.
    let underscores = uid(1).replace('-', "_");
    assert_eq!(local(&names, Some(&underscores), Some(&unknown)), "shop/web/web-5d4f8c7b9-00001/");
    assert_eq!(local(&names, Some(&uid(99)), Some(&unknown)), "");
    assert_eq!(local(&names, Some(&uid(2)), Some(&container_id(2))), "", "another node's");
    assert_eq!(local(&names, Some("web"), Some("12ab")), "");
    assert_eq!(local(&names, None, None), "");
    let status = status_of(&names, "apiserver");
    assert_eq!((status.last_sync, status.objects), (Some(clock()), vec![("pod", 1)]));
    assert!(status.errors.iter().all(|(_, count)| *count == 0), "{:?}", status.errors);
    // From the server's memory, with no more parameters than needed.
    let asked = server.with(|world| world.requests[0].clone());
    let list = format!("list {PODS}?&fieldSelector=spec.nodeName%3D{NODE}&resourceVersion=0");
    assert_eq!(asked, list);
}

#[tokio::test]
async fn pods_come_change_and_go_and_the_gone_are_still_known() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    // A pod is created, and gets its container later.
    server.with(|world| {
        let mut young = pod(2);
        young["status"] = json!({"phase": "Pending"});
        world.put(PODS, young);
    });
    until(&names, |names| !local(names, Some(&uid(2)), None).is_empty()).await;
    assert_eq!(local(&names, None, Some(&container_id(2))), "");
    server.with(|world| world.put(PODS, pod(2)));
    until(&names, |names| !local(names, None, Some(&container_id(2))).is_empty()).await;
    // Its container is restarted.
    server.with(|world| {
        let mut again = pod(2);
        again["status"]["containerStatuses"][0]["containerID"] =
            json!(format!("cri-o://{}", container_id(22)));
        world.put(PODS, again);
    });
    let whole = "shop/web/web-5d4f8c7b9-00002/app";
    until(&names, |names| local(names, None, Some(&container_id(22))) == whole).await;
    assert_eq!(local(&names, None, Some(&container_id(2))), whole, "the one before");
    server.with(|world| world.delete(PODS, "web-5d4f8c7b9-00002"));
    until(&names, |names| objects(names, "pod") == 1).await;
    assert_eq!(local(&names, Some(&uid(2)), Some(&container_id(22))), whole, "kept");
    // A hundred pods that live for a moment each.
    server.with(|world| {
        for number in 100..200 {
            world.put(PODS, pod(number));
            world.delete(PODS, &format!("web-5d4f8c7b9-{number:05}"));
        }
        world.put(PODS, pod(3));
    });
    until(&names, |names| !local(names, Some(&uid(3)), None).is_empty()).await;
    assert_eq!(objects(&names, "pod"), 2);
    assert_ne!(local(&names, None, Some(&container_id(150))), "");
    assert_eq!(server.with(|world| world.count("list")), 1, "all of that was watched");
}

#[tokio::test]
async fn the_gone_are_forgotten_after_a_while() {
    let (server, files, _names) = asked("", |world| world.put(PODS, pod(1))).await;
    let pace = finrace::kube::Pace { keep: std::time::Duration::from_millis(20), ..super::quick() };
    let names = super::names_of(&files, "", pace);
    until(&names, is_up).await;
    server.with(|world| {
        world.put(PODS, pod(2));
        world.delete(PODS, "web-5d4f8c7b9-00001");
    });
    until(&names, |names| local(names, Some(&uid(1)), Some(&container_id(1))).is_empty()).await;
    assert_ne!(local(&names, Some(&uid(2)), None), "", "what is there stays");
}

#[tokio::test]
async fn all_containers_and_static_pods_are_known() {
    let hash = "b53dfa9e2dc9b890f7fadb2770857b03";
    let (_server, _files, names) = asked("", |world| {
        let mut mirror = pod(1);
        mirror["metadata"]["name"] = json!("etcd-node-a");
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file"});
        mirror["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": uid(7), "controller": true}]);
        world.put(PODS, mirror);
        // Anyone may write an annotation: it does not turn a pod into another one.
        let mut liar = pod(2);
        liar["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
        world.put(PODS, liar);
        let mut job = pod(3);
        job["metadata"]["name"] = json!("backup-29381040-x2x4z");
        job["metadata"]["ownerReferences"] = json!([
            {"kind": "Stranger", "name": "x"},
            {"kind": "Job", "name": "backup-29381040", "controller": true}]);
        let status = |name, number| {
            json!([{"name": name, "containerID": format!("docker://{}", container_id(number))}])
        };
        job["status"]["initContainerStatuses"] = status("init", 31);
        job["status"]["ephemeralContainerStatuses"] = status("debugger", 32);
        world.put(PODS, job);
    })
    .await;
    until(&names, is_up).await;
    assert_eq!(local(&names, Some(hash), None), "shop/etcd/etcd-node-a/");
    assert_eq!(local(&names, Some(&uid(1)), None), "shop/etcd/etcd-node-a/");
    assert_eq!(local(&names, Some(&uid(2)), None), "shop/web/web-5d4f8c7b9-00002/");
    let job = "shop/backup/backup-29381040-x2x4z";
    assert_eq!(local(&names, None, Some(&container_id(31))), format!("{job}/init"));
    assert_eq!(local(&names, None, Some(&container_id(32))), format!("{job}/debugger"));
}

#[tokio::test]
async fn a_bookmark_is_where_to_go_on() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    server.with(|world| {
        // Changes elsewhere, of which this watch hears nothing.
        for _ in 0..41 {
            world.put("/elsewhere", pod(5));
        }
        world.bookmark(PODS);
    });
    // Whatever follows on the same connection was read later.
    server.with(|world| world.say(PODS, "}"));
    until(&names, |names| errors(names, Reason::Decode) == 1).await;
    server.with(World::end_watches);
    server.until(|world| world.count("resourceVersion=43") == 1).await;
    assert_eq!(server.with(|world| world.count("list")), 1);
    server.with(|world| world.put(PODS, pod(2)));
    until(&names, |names| objects(names, "pod") == 2).await;
    assert!(is_up(&names));
}

#[tokio::test]
async fn in_a_pod_the_service_account_is_all_it_takes() {
    let (server, files, _names) = asked("", |world| world.put(PODS, pod(1))).await;
    files.write("ca.crt", &super::kubelet::Authority::new().pem());
    let account =
        Account { server: format!("http://{}", server.address), directory: files.0.clone() };
    let names = start(super::config(&format!("--kube.node {NODE}"), Some(account)));
    until(&names, is_up).await;
    assert_eq!(local(&names, Some(&uid(1)), None), "shop/web/web-5d4f8c7b9-00001/");
}

#[tokio::test]
async fn nobody_is_asked_when_nobody_has_the_names_any_more() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    let mut changes = names.changes();
    let other = names.clone();
    drop(names);
    server.with(|world| world.put(PODS, pod(2)));
    until(&other, |names| objects(names, "pod") == 2).await;
    drop(other);
    // Ends when the thread has ended.
    super::in_time(async { while changes.changed().await.is_ok() {} }).await;
}
