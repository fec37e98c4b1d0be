//! Egress by name: curl, apt and pip reach a mirror by allowed names, and nothing else.
//!
//! The mirror is in a network namespace behind the one that takes the place of the host's network.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use a3s_box_vm_tests::{Shim, config, variable};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::json;

/// The host (from TEST-NET-1, RFC 5737), and its address in the network of the mirror (from
/// TEST-NET-2).
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

const MIRROR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// The page of the package index of Python.
const INDEX: &str = r#"<a href="/mirrored-1.0-py3-none-any.whl">mirrored-1.0-py3-none-any.whl</a>"#;

/// What a workload does: it reads a page, updates apt and loads a package, loads a module, and then
/// tries what is not allowed. Each line of its output is a name and a result.
const SCRIPT: &str = r#"
cd /srv
say() { echo "$1: $2"; }
fetch() { curl -sS -m 30 "$@" 2>&1; }
say page "$(fetch http://www.example.org:8000/page)"
rm -rf /etc/apt/sources.list.d
echo "deb [trusted=yes] http://deb.example.org:8000 ./" >/etc/apt/sources.list
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial
apt-get -qq -o APT::Sandbox::User=root update
apt-get -qq -o APT::Sandbox::User=root download mirrored
say apt "$(dpkg-deb -f mirrored_1.0_all.deb Description)"
pip download -q --no-deps --no-cache-dir --disable-pip-version-check \
  --index-url http://pypi.example.org:8000/simple --trusted-host pypi.example.org mirrored
say pip "$(echo *.whl)"
fetch http://other.test:8000/page; say other $?
fetch http://example.org:8000/page; say parent $?
fetch http://192.0.2.10:8000/page; say host $?
fetch http://rebind.example.org:8000/page; say rebind $?
fetch http://www.example.org:8001/page; say port $?
say before "$(fetch --resolve www.example.org:8000:198.51.100.7 http://www.example.org:8000/page)"
sleep 62
fetch --resolve www.example.org:8000:198.51.100.7 http://www.example.org:8000/page; say expired $?
say again "$(fetch http://www.example.org:8000/page)"
"#;

/// Results of the script. 6 and 7 are the statuses of curl for a name that it cannot resolve, and
/// for a connection that is refused.
const RESULTS: [&str; 11] = [
    "page: page of the mirror",
    "apt: package of a test",
    "pip: mirrored-1.0-py3-none-any.whl",
    "other: 6",
    "parent: 6",
    "host: 7",
    "rebind: 6",
    "port: 7",
    "before: page of the mirror",
    "expired: 7",
    "again: page of the mirror",
];

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Moves this thread into a new network namespace with an address of a host, and puts the mirror
/// into another one behind it.
fn enter_host_network_with_a_mirror() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in ["link set lo up", &format!("address add {HOST}/32 dev lo")] {
        ip(arguments);
    }
    let (thread_id, its_id) = mpsc::channel();
    let (connected, has_device) = mpsc::channel();
    let (listens, is_ready) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        thread_id.send(gettid()).unwrap();
        has_device.recv().unwrap();
        for arguments in [&format!("address add {MIRROR}/24 dev inner"), "link set inner up"] {
            ip(arguments);
        }
        let listeners = [8000, 8001].map(|port| TcpListener::bind((MIRROR, port)).unwrap());
        listens.send(()).unwrap();
        let [mirror, _other] = &listeners;
        for stream in mirror.incoming() {
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    let id = its_id.recv().unwrap();
    for arguments in [
        &format!("link add outer type veth peer name inner netns {id}"),
        &format!("address add {HOST_THERE}/24 dev outer"),
        "link set outer up",
    ] {
        ip(arguments);
    }
    connected.send(()).unwrap();
    is_ready.recv().unwrap();
}

/// Answers one request for a file of the mirror.
fn serve(mut stream: TcpStream) {
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(count @ 1..) => request.extend(&part[..count]),
            // The client has gone.
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches("/./");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mirror");
    let content = match path.trim_start_matches('/') {
        "simple/mirrored/" => Some(INDEX.as_bytes().to_vec()),
        name if name.contains('/') => None,
        name => fs::read(directory.join(name)).ok(),
    };
    let (status, kind) = match &content {
        Some(_) if path.starts_with("/simple") => ("200 OK", "text/html"),
        Some(_) => ("200 OK", "application/octet-stream"),
        None => ("404 Not Found", "text/plain"),
    };
    let content = content.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    );
    // The client may be gone already.
    let _sent = stream.write_all(&[head.as_bytes(), &content].concat());
}

/// Serves names on [`HOST`]: one leads to the host, and all others to the mirror. Each answer has a
/// time to live of one second.
fn serve_names() {
    let socket = UdpSocket::bind((HOST, 53)).unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            let question = &question[..count];
            // The name ends with a label of no bytes, type and class follow (RFC 1035).
            let name = question[12..].split(|byte| *byte == 0).next().unwrap();
            let end = 12 + name.len() + 5;
            let mut answer = question[..end].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            let address = if name.starts_with(b"\x06rebind") { HOST } else { MIRROR };
            answer.extend(address.octets());
            socket.send_to(&answer, from).unwrap();
        }
    });
}

#[test]
fn curl_apt_and_pip_reach_a_mirror_by_allowed_names_and_nothing_else() {
    enter_host_network_with_a_mirror();
    serve_names();
    let on_host = TcpListener::bind((HOST, 8000)).unwrap();
    on_host.set_nonblocking(true).unwrap();
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let mut config = config(directory.path(), &json!({"args": ["bash", "-c", SCRIPT]}));
    let layout = variable("A3S_BOX_KINDS").join("kinds");
    config["image"] = json!({"layout": layout, "reference": "client"});
    // A workload that hangs ends by itself, and its test fails with the events.
    config["resources"] = json!({"timeout_ms": 400_000});
    config["network"] = json!({
        "mode": "passt",
        "egress": [{"to": "*.example.org", "ports": [8000], "protocol": "tcp"}],
        "dns": [HOST],
    });
    let mut shim = Shim::spawn(directory, &config);
    shim.ends_with(0, "exited", None);
    let console = String::from_utf8(shim.console()).unwrap();
    let results: Vec<&str> = console.lines().filter(|line| RESULTS.contains(line)).collect();
    assert_eq!(results, RESULTS, "{console}");
    assert!(on_host.accept().is_err(), "the service of the host was reached");
    let refused = shim.events.iter().filter(|event| event["type"] == "network.refused");
    let refused: Vec<_> =
        refused.map(|event| (&event["protocol"], &event["name"], &event["address"])).collect();
    for (protocol, name, address) in [
        ("dns", "other.test", "10.0.2.3"),
        ("dns", "example.org", "10.0.2.3"),
        ("dns", "rebind.example.org", "192.0.2.10"),
        ("tcp", "www.example.org", "198.51.100.7"),
    ] {
        let expected = (&json!(protocol), &json!(name), &json!(address));
        assert!(refused.contains(&expected), "{name}: {refused:?}");
    }
}
