//! Whatever goes wrong is counted, and recovers by itself.

use std::time::Duration;

use serde_json::json;

use super::server::{PODS, World};
use super::{
    Files, Server, asked, container_id, errors, is_up, local, names_of, objects, pod, quick, uid,
    until,
};
use finrace::kube::{Pace, Reason};

#[tokio::test]
async fn rights_that_come_later_are_enough() {
    for verb in ["list", "watch"] {
        let (server, _files, names) = asked("", |world| {
            world.put(PODS, pod(1));
            world.forbidden = vec![(verb, PODS)];
        })
        .await;
        until(&names, |names| errors(names, Reason::Forbidden) > 3).await;
        assert_eq!(!local(&names, Some(&uid(1)), None).is_empty(), verb == "watch");
        server.with(|world| world.forbidden.clear());
        until(&names, |names| is_up(names) && objects(names, "pod") == 1).await;
        server.with(|world| world.put(PODS, pod(2)));
        until(&names, |names| objects(names, "pod") == 2).await;
    }
}

#[tokio::test]
async fn rights_that_are_taken_away_leave_the_names() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    server.with(|world| {
        world.forbidden = vec![("list", PODS), ("watch", PODS)];
        world.end_watches();
    });
    until(&names, |names| errors(names, Reason::Forbidden) > 3).await;
    assert!(!is_up(&names));
    assert_ne!(local(&names, None, Some(&container_id(1))), "");
    server.with(|world| world.forbidden.clear());
    until(&names, is_up).await;
}

#[tokio::test]
async fn a_token_counts_as_soon_as_it_is_in_its_file() {
    let (server, files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    server.with(|world| {
        world.token = Some("second".to_owned());
        world.end_watches();
    });
    until(&names, |names| errors(names, Reason::Unauthorized) > 2).await;
    assert!(!is_up(&names));
    std::fs::remove_file(files.0.join("token")).expect("a token");
    let before = errors(&names, Reason::Unauthorized);
    until(&names, |names| errors(names, Reason::Unauthorized) > before).await;
    files.set_token("second");
    until(&names, is_up).await;
}

#[tokio::test]
async fn what_is_gone_is_listed_again() {
    for is_gone_an_answer in [false, true] {
        let (server, _files, names) = asked("", |world| {
            world.is_gone_an_answer = is_gone_an_answer;
            world.put(PODS, pod(1));
            world.put(PODS, pod(2));
        })
        .await;
        until(&names, is_up).await;
        server.with(|world| {
            world.put("/elsewhere", pod(9));
            world.delete_unseen(PODS, "web-5d4f8c7b9-00001");
            world.put("/elsewhere", pod(9));
            world.compact();
            world.end_watches();
        });
        until(&names, |names| objects(names, "pod") == 1).await;
        assert_eq!(errors(&names, Reason::Gone), 1);
        assert_ne!(local(&names, Some(&uid(1)), None), "", "kept for a while");
        until(&names, is_up).await;
        // Not from a memory that may itself be too old.
        let (first, all) = server.with(|world| {
            let lists = world.requests.iter().filter(|request| request.starts_with("list"));
            (lists.clone().filter(|list| list.contains("resourceVersion=0")).count(), lists.count())
        });
        assert_eq!((first, all), (1, 2));
    }
}

/// A failure in between is no reason to trust the server's memory again.
#[tokio::test]
async fn what_is_gone_is_listed_from_the_database_whatever_fails_before() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    server.with(|world| {
        world.compact();
        world.forbidden = vec![("list", PODS)];
        world.end_watches();
    });
    until(&names, |names| errors(names, Reason::Forbidden) > 1).await;
    server.with(|world| world.forbidden.clear());
    until(&names, is_up).await;
    let from_memory = server.with(|world| {
        let lists = world.requests.iter().filter(|request| request.starts_with("list"));
        lists.filter(|list| list.contains("resourceVersion=0")).count()
    });
    assert_eq!((errors(&names, Reason::Gone), from_memory), (1, 1), "only the first");
}

#[tokio::test]
async fn a_server_that_comes_back_is_found() {
    let (mut server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    server.stop().await;
    until(&names, |names| errors(names, Reason::Connect) > 3).await;
    assert!(!is_up(&names));
    assert_ne!(local(&names, None, Some(&container_id(1))), "");
    server.with(|world| {
        world.put(PODS, pod(2));
        world.delete(PODS, "web-5d4f8c7b9-00001");
    });
    server.restart();
    until(&names, |names| is_up(names) && !local(names, Some(&uid(2)), None).is_empty()).await;
    assert_eq!(objects(&names, "pod"), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_found() {
    let mut server = Server::start().await;
    server.stop().await;
    let files = Files::new(&format!("http://{}", server.address), "first");
    let names = names_of(&files, "", quick());
    until(&names, |names| errors(names, Reason::Connect) > 1).await;
    assert!(!is_up(&names));
    assert!(names.status().iter().all(|status| status.last_sync.is_none()));
    server.with(|world| world.put(PODS, pod(1)));
    server.restart();
    until(&names, |names| is_up(names) && objects(names, "pod") == 1).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_asked_again() {
    let server = Server::start().await;
    server.with(|world| {
        world.put(PODS, pod(1));
        world.is_silent = true;
    });
    let files = Files::new(&format!("http://{}", server.address), "first");
    let pace = Pace { request: Duration::from_millis(30), ..quick() };
    let names = names_of(&files, "", pace);
    until(&names, |names| errors(names, Reason::Timeout) > 2).await;
    assert!(!is_up(&names));
    server.with(|world| world.is_silent = false);
    until(&names, |names| is_up(names) && objects(names, "pod") == 1).await;
}

/// As when the network swallows everything: the other end of the connection is gone.
#[tokio::test]
async fn a_watch_in_which_nothing_happens_is_begun_again() {
    let server = Server::start().await;
    server.with(|world| world.put(PODS, pod(1)));
    let files = Files::new(&format!("http://{}", server.address), "first");
    let pace = Pace { silence: Duration::from_millis(30), ..quick() };
    let names = names_of(&files, "", pace);
    server.until(|world| world.count("watch") > 4).await;
    assert!(errors(&names, Reason::Timeout) > 2);
    assert_eq!(objects(&names, "pod"), 1);
}

#[tokio::test]
async fn one_object_that_cannot_be_read_does_not_concern_the_others() {
    let wrong = |part: &str, value: serde_json::Value| {
        let mut wrong = pod(50);
        *wrong.pointer_mut(part).expect("a part") = value;
        wrong
    };
    let bad = [
        wrong("/metadata/labels", json!(7)),
        wrong("/metadata/uid", json!("not-a-uid")),
        wrong("/metadata/uid", json!(null)),
        wrong("/metadata/namespace", json!(["a"])),
        wrong("/status/podIPs", json!({"ip": {}})),
        wrong("/status/containerStatuses/0/name", json!(1)),
        wrong("/metadata/ownerReferences", json!([{"kind": "Job"}])),
    ];
    let many = bad.len() as u64;
    let (server, _files, names) = asked("", |world| {
        world.put(PODS, pod(1));
        for (number, bad) in bad.iter().enumerate() {
            let mut bad = bad.clone();
            bad["metadata"]["name"] = json!(format!("bad-{number}"));
            world.put(PODS, bad);
        }
        // Much that is odd but can be read.
        let mut odd = pod(2);
        odd["metadata"]["annotations"] = json!(null);
        odd["metadata"]["ownerReferences"] = json!(null);
        odd["status"]["containerStatuses"] =
            json!([{"name": "x", "containerID": ""}, {"name": "y"}, {"name": "z", "containerID": null}]);
        odd["status"]["podIP"] = json!("");
        world.put(PODS, odd);
    })
    .await;
    until(&names, is_up).await;
    assert_eq!((objects(&names, "pod"), errors(&names, Reason::Decode)), (2, many));
    let odd = "shop/web-5d4f8c7b9-00002/web-5d4f8c7b9-00002/";
    assert_eq!(local(&names, Some(&uid(2)), None), odd);
    // The same in a watch, with lines that are not events at all.
    server.with(|world| {
        world.put(PODS, wrong("/metadata/labels", json!("x")));
        world.say(PODS, "no JSON");
        world.say(PODS, "[]");
        world.say(PODS, &"[".repeat(100_000));
        world.say(PODS, r#"{"type":"FUTURE","object":{}}"#);
        world.say(PODS, "");
        world.put(PODS, pod(3));
    });
    until(&names, |names| objects(names, "pod") == 3).await;
    assert!(errors(&names, Reason::Decode) >= many + 4, "{}", errors(&names, Reason::Decode));
    assert!(is_up(&names));
    assert_eq!(server.with(|world| world.count("list")), 1);
}

#[tokio::test]
async fn an_answer_that_is_no_list_takes_no_name_away() {
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    let answers = [
        "{}",
        "",
        "<html>",
        r#"{"kind":"Status","items":[],"metadata":{"resourceVersion":"1"}}"#,
        r#"{"kind":"PodList","items":[]}"#,
        r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":7}"#,
    ];
    for answer in answers {
        server.with(|world| {
            world.list = Some(answer.to_owned());
            world.compact();
            world.end_watches();
        });
        let before = errors(&names, Reason::Decode);
        until(&names, |names| errors(names, Reason::Decode) > before).await;
        assert!(!is_up(&names), "{answer}");
        assert_eq!(objects(&names, "pod"), 1, "{answer}");
        server.with(|world| world.list = None);
        until(&names, is_up).await;
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_read() {
    const MIB: usize = 1 << 20;
    let (server, _files, names) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&names, is_up).await;
    // The longest answer that there may be, with what makes it a list, and one that is longer.
    for (spaces, is_read) in [(31 * MIB, true), (32 * MIB, false)] {
        let list = r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}"#;
        let before = errors(&names, Reason::Decode);
        server.with(|world| {
            world.list = Some(" ".repeat(spaces) + list);
            world.compact();
            world.end_watches();
        });
        let lists = server.with(|world| world.count("list"));
        server.until(|world| world.count("list") > lists).await;
        if is_read {
            until(&names, |names| objects(names, "pod") == 0).await;
            assert_eq!(errors(&names, Reason::Decode), before);
        } else {
            until(&names, |names| errors(names, Reason::Decode) > before).await;
            assert_eq!(objects(&names, "pod"), 1, "no name is taken away");
        }
        server.with(|world| world.list = None);
        until(&names, |names| is_up(names) && objects(names, "pod") == 1).await;
    }
    let before = errors(&names, Reason::Decode);
    server.with(|world| world.say(PODS, &" ".repeat(9 * MIB)));
    until(&names, |names| errors(names, Reason::Decode) > before).await;
    until(&names, is_up).await;
}

/// Five at most, since a server that ends each watch would be asked endlessly.
#[tokio::test]
async fn a_server_that_ends_each_watch_is_asked_no_more_often_than_one_that_fails() {
    let server = Server::start().await;
    let files = Files::new(&format!("http://{}", server.address), "first");
    let pace = Pace { retry: [Duration::from_hours(1); 2], ..quick() };
    let names = names_of(&files, "", pace);
    until(&names, is_up).await;
    server.until(|world| world.count("watch") == 1).await;
    server.with(World::end_watches);
    // Another server of the same kind goes through its whole life meanwhile.
    let (other, _files, others) = asked("", |world| world.put(PODS, pod(1))).await;
    until(&others, is_up).await;
    other.with(|world| world.put(PODS, pod(2)));
    until(&others, |names| objects(names, "pod") == 2).await;
    assert_eq!(server.with(|world| world.count("watch")), 1);
    assert!(is_up(&names));
}
