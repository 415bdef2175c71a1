//! Everything that comes from outside is text, and nothing runs.

use sha2::{Digest as _, Sha256};

use super::*;

/// The page without its text, and the text without the page.
fn parts(page: &str) -> (String, String) {
    let (mut tags, mut text) = (String::new(), String::new());
    for part in page.split('<') {
        let (tag, after) = part.split_once('>').unwrap_or(("", part));
        tags += tag;
        text += after;
    }
    (tags, text)
}

#[test]
fn names_are_text_whatever_they_look_like() {
    for (name, shown) in [
        ("<script>x()", "&lt;script&gt;x()"),
        ("</title><b>", "&lt;/title&gt;&lt;b&gt;"),
        ("\" onload=\"x()", "&quot; onload=&quot;x()"),
        ("'><img src=x>", "'&gt;&lt;img src=x&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("{{7*7}} ${x}", "{{7*7}} ${x}"),
        ("--><!--", "--&gt;&lt;!--"),
        ("]]>", "]]&gt;"),
        ("a\u{202e}b\u{0}c", "a\\u{202e}b"),
        ("a\nb\tc\u{1b}[31m", "a\\u{a}b\\u{9}c\\u{1b}[31m"),
        ("\u{feff}\u{2066}x", "\\u{feff}\\u{2066}x"),
        ("javascript:x()", "javascript:x()"),
        ("`whoami`", "whoami"),
        ("שלום nginx", "שלום nginx"),
    ] {
        let mut world = World::new();
        world.about.host = name.replace('\u{0}', "");
        for (number, role) in [(1, Role::Client), (2, Role::Server)] {
            let origin = origin(role, number, Some(name));
            let closer = if role == Role::Server { Closer::Local } else { Closer::Peer };
            world.traffic(origin, closer, 5000);
            world.incident(at(39_000), origin, Class::StaleWrite);
        }
        for ask in [ALL, only("10.0.1.1:8080"), only(":443 from 10.0.1.2")] {
            let page = world.page(ask);
            balanced(&page);
            let (tags, text) = parts(&page);
            assert!(text.contains(shown), "{name:?} in {ask:?}");
            let mark = name.trim_start_matches(['a', '<', '/']).get(..3);
            let mark = mark.filter(|mark| !["scr", "tit"].contains(mark)).unwrap_or("x()");
            assert!(!tags.contains(mark), "{name:?} in {ask:?}: {mark}");
            assert!(!page.contains(['\u{202e}', '\u{0}', '\u{1b}', '\u{feff}', '\u{2066}']));
            assert!(["<script", "<img", "<b>", "onload=\"x"].iter().all(|no| !page.contains(no)));
        }
        let json = world.picture(ALL);
        let json = json::peers(&world.about, ALL, &json).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let process = json.pointer("/peers/0/process").unwrap().as_str().unwrap();
        assert_eq!(process, finrace_logic::model::Name::from(name).as_str());
    }
}

#[test]
fn an_owner_is_named() {
    let mut world = World::new();
    let owned = world.owned("<b>.service");
    world.traffic(owned, Closer::Peer, 5000);
    let page = world.page(ALL);
    balanced(&page);
    assert!(page.contains("<bdi>&lt;b&gt;.service (nginx)</bdi>"), "{page}");
    let picture = world.picture(ALL);
    let json = json::peers(&world.about, ALL, &picture).unwrap();
    assert!(json.contains(r#""workload": "<b>.service""#), "{json}");
    // A process with the name of its unit adds nothing.
    let owned = world.owned("nginx.service");
    world.traffic(owned, Closer::Peer, 5000);
    assert!(world.page(ALL).contains("<bdi>nginx.service</bdi>"));
}

#[test]
fn the_style_is_the_one_of_the_policy() {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let page = World::new().page(ALL);
    let (_, rest) = page.split_once("<style>").unwrap();
    let (style, rest) = rest.split_once("</style>").unwrap();
    let digest = Sha256::digest(style);
    let mut base64 = String::new();
    for three in digest.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let is_there = digit <= three.len();
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            base64.push(if is_there { DIGITS[value].into() } else { '=' });
        }
    }
    assert!(SECURITY_POLICY.contains(&format!("'sha256-{base64}'")), "it is now {base64}");
    // Nothing that the policy would block.
    for refused in ["<style", "<script", "<link", "<img", " style=", "url(", "@import", " on"] {
        assert!(!parts(rest).0.contains(refused.trim_start_matches('<')) || refused == " on");
        assert!(!style.contains(refused), "{refused}");
    }
}
