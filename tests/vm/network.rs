//! What a guest reaches, and from where it is reached, by `network.mode`. Each test has a network of its own
//! that plays the host's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use a3s_box_vm_tests::{Shim, eventually, variable};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// An address of the host in its network; and where clouds tell credentials.
const HOST: &str = "192.0.2.10";
const METADATA: &str = "169.254.169.254";

/// In the guest: `try NAME ADDRESS` tells whether there was an answer.
const TRY: &str = r#"
try() { /w/workload "reach=$1@$2"; }
"#;

/// Speaks to the host's loopback address over the network, as a guest can that means harm.
const SPEAK_TO_LOOPBACK: &str = "
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.0/8 dev eth0
try loopback 127.0.0.1:8001
";

/// Tells what the guest was given.
const TELL: &str = r#"
echo "hostname $(hostname) $(cat /etc/hostname)"
sed 's/^/hosts /; s/\t/ /' /etc/hosts
sed 's/^/resolv /' /etc/resolv.conf
ip -4 -o addr show dev eth0 | sed 's/.*inet \([^ ]*\).*/address \1/'
echo "mtu $(cat /sys/class/net/eth0/mtu)"
ip route | sed 's/^/route /; s/ *$//'
"#;

/// Puts this thread, and what it starts, into a network of its own: a host with an address of its own.
fn enter_a_hosts_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in [
        "link set lo up".to_owned(),
        format!("address add {HOST}/32 dev lo"),
        format!("address add {METADATA}/32 dev lo"),
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
}

/// Answers every request, and counts them.
fn serve(address: &str) -> Arc<AtomicU32> {
    let listener = TcpListener::bind(address).unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Also those who only connect.
            counted.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut part = [0; 1024];
            // To its empty line: what is left unread would reset the connection.
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(count @ 1..) => request.extend(&part[..count]),
                    _ => break,
                }
            }
            let _told = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n");
        }
    });
    count
}

/// Answers every question for an IPv4 address with [`HOST`].
fn serve_names() {
    let socket = UdpSocket::bind((HOST, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            let mut answer = question[..count].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            if answer[count - 4..count] == [0, 1, 0, 1] {
                answer[6..8].copy_from_slice(&[0, 1]);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 10]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// A file of the image, from the guest's own server.
fn fetch(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /new HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn start(script: &str, network: Value) -> Shim {
    let script = format!("{TRY}{script}\necho all told\nexec httpd -f -p 80 -h /srv/data");
    Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        let program = variable("A3S_BOX_WORKLOAD");
        let directory = program.parent().unwrap();
        config["mounts"] =
            json!([{"type": "virtiofs", "source": directory, "target": "/w", "read_only": true}]);
        config["network"] = network;
        config["hostname"] = json!("web.example.org");
    })
}

/// The lines of the guest, when it has told all.
fn told(shim: &Shim) -> Vec<String> {
    let text = || String::from_utf8(shim.console()).unwrap();
    let all_told = || text().contains("all told\n");
    let start = std::time::Instant::now();
    while !all_told() {
        assert!(start.elapsed() < a3s_box_vm_tests::PATIENCE, "{shim}");
        std::thread::sleep(Duration::from_millis(50));
    }
    text().lines().map(str::to_owned).collect()
}

fn has(told: &[String], lines: &[&str]) {
    for line in lines {
        assert!(told.iter().any(|found| found == line), "no `{line}` in {told:#?}");
    }
}

fn has_not(told: &[String], names: &[&str]) {
    for name in names {
        let start = format!("{name} not reached");
        assert!(told.iter().any(|line| line.starts_with(&start)), "no `{start}` in {told:#?}");
    }
}

fn warnings(shim: &Shim) -> Vec<&str> {
    let of = shim.events.iter().filter(|event| event["type"] == "warning");
    of.map(|event| event["code"].as_str().unwrap()).collect()
}

fn stop(shim: &mut Shim) {
    kill(Pid::from_raw(i32::try_from(shim.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    shim.end();
    assert_eq!(shim.events.last().unwrap()["reason"], "stopped", "{shim}");
}

#[test]
fn a_guest_with_egress_reaches_the_network_and_not_the_host_itself() {
    enter_a_hosts_network();
    let server = serve(&format!("{HOST}:8000"));
    let loopback = serve("127.0.0.1:8001");
    let metadata = serve(&format!("{METADATA}:80"));
    serve_names();
    let script = format!(
        "{TELL}\ntry server {HOST}:8000\nnslookup name.example {HOST} | sed 's/^/dns /'\n\
         try metadata {METADATA}:80\ntry gateway 10.0.2.2:8001\n\
         try this 0.0.0.0:8001\n{SPEAK_TO_LOOPBACK}"
    );
    let publish = json!([{"host_address": "127.0.0.1", "host_port": 80, "guest_port": 80}]);
    let network = json!({"mode": "passt", "egress": "allow", "dns": [HOST], "publish": publish});
    let mut shim = start(&script, network);
    let told = told(&shim);
    has(
        &told,
        &[
            "hostname web.example.org web.example.org",
            "hosts 10.0.2.15 web.example.org web",
            "resolv nameserver 192.0.2.10",
            "address 10.0.2.15/24",
            "mtu 65520",
            "route default via 10.0.2.2 dev eth0",
            "server reached",
        ],
    );
    assert!(
        told.iter().any(|line| line.starts_with("dns Address") && line.contains(HOST)),
        "{told:#?}"
    );
    let counts = [&server, &loopback, &metadata].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 0, 0]);
    eventually("an answer of the published port", || {
        fetch("127.0.0.1:80").as_deref() == Some("from layer 6\n")
    });
    assert!(TcpStream::connect((HOST, 80)).is_err(), "published on one address only");
    stop(&mut shim);
    assert_eq!(warnings(&shim), [""; 0]);
}

#[test]
fn a_guest_without_egress_reaches_nothing_and_is_reached() {
    enter_a_hosts_network();
    let counts =
        [serve(&format!("{HOST}:8000")), serve("127.0.0.1:8001"), serve(&format!("{METADATA}:80"))];
    let script = format!(
        "{TELL}\ntry server {HOST}:8000\nip route add default via 10.0.2.2\n\
         try routed {HOST}:8000\ntry metadata {METADATA}:80\n\
         try gateway 10.0.2.2:8001\n{SPEAK_TO_LOOPBACK}"
    );
    let publish = json!([{"host_address": HOST, "host_port": 80, "guest_port": 80}]);
    let mut shim = start(&script, json!({"mode": "passt", "publish": publish}));
    let told = told(&shim);
    has(
        &told,
        &[
            "hosts 10.0.2.15 web.example.org web",
            "resolv # This box has no name servers.",
            "address 10.0.2.15/24",
            "route 10.0.2.0/24 dev eth0 scope link  src 10.0.2.15",
        ],
    );
    has_not(&told, &["server", "routed", "metadata", "gateway", "loopback"]);
    assert!(!told.iter().any(|line| line.starts_with("route default")), "{told:#?}");
    assert_eq!(counts.map(|count| count.load(Ordering::SeqCst)), [0; 3]);
    let published = format!("{HOST}:80");
    eventually("an answer of the published port", || {
        fetch(&published).as_deref() == Some("from layer 6\n")
    });
    assert!(TcpStream::connect("127.0.0.1:80").is_err(), "published on one address only");

    // Without passt the box goes on, and nothing spins.
    let gate =
        Command::new("pgrep").args(["-P", &shim_pid(&shim).to_string(), "a3s-box-gate"]).output();
    let gate = String::from_utf8(gate.unwrap().stdout).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(gate), Signal::SIGKILL).unwrap();
    shim.wait_for("warning");
    let before = cpu_ticks(&shim);
    std::thread::sleep(Duration::from_secs(3));
    let after = cpu_ticks(&shim);
    assert!(after - before < 200, "{before} to {after} ticks of 10 ms in 3 s");
    stop(&mut shim);
    assert_eq!(warnings(&shim), ["network_lost"]);
}

/// The shim itself: in the lab `taskset` has become it.
fn shim_pid(shim: &Shim) -> u32 {
    shim.child.id()
}

/// CPU time of the shim in user space and in the kernel, guest included.
fn cpu_ticks(shim: &Shim) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim_pid(shim))).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, the 14th and 15th (proc(5)).
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn tsi_reaches_the_hosts_loopback_and_warns() {
    enter_a_hosts_network();
    let loopback = serve("127.0.0.1:8001");
    let script = "try loopback 127.0.0.1:8001\nhostname\nsed 's/\\t/ /' /etc/hosts";
    let mut shim = start(script, json!({"mode": "tsi"}));
    has(&told(&shim), &["loopback reached", "web.example.org", "203.0.113.1 web.example.org web"]);
    assert_eq!(loopback.load(Ordering::SeqCst), 1);
    stop(&mut shim);
    assert_eq!(warnings(&shim), ["host_network"]);
}

#[test]
fn a_guest_without_a_network_has_a_host_name_and_nothing_else() {
    let script = "hostname; sed 's/\\t/ /' /etc/hosts; ls /sys/class/net | grep -v dummy; \
                  cat /etc/resolv.conf 2>&1; echo end";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["id"] = json!("test");
    });
    shim.ends_with(0, "exited", None);
    let console = String::from_utf8(shim.console()).unwrap();
    let lines: Vec<&str> = console.lines().collect();
    assert_eq!(lines[0], "test", "{console}");
    assert!(lines.contains(&"127.0.1.1 test") && lines.contains(&"lo"), "{console}");
    assert!(!lines.contains(&"eth0") && console.contains("No such file"), "{console}");
}
