//! What a guest can reach, and from where it can be reached, in each `network.mode`.
//!
//! Each test runs in a network namespace of its own, which takes the place of the host's network.

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

/// An address of the host in its network (from TEST-NET-1, RFC 5737).
const HOST: &str = "192.0.2.10";

/// The address at which clouds serve the credentials of a machine.
const METADATA: &str = "169.254.169.254";

/// Shell function of the guest. `try NAME ADDRESS` prints whether the server at ADDRESS answers.
const TRY: &str = r#"
try() { /w/workload "reach=$1@$2"; }
"#;

/// Shell commands of a hostile guest that send packets for 127.0.0.1 out over its Ethernet device.
const TRY_LOOPBACK: &str = "
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.0/8 dev eth0
try loopback 127.0.0.1:8001
";

/// Shell commands that print the network configuration of the guest.
const SHOW_CONFIGURATION: &str = r#"
echo "hostname $(hostname) $(cat /etc/hostname)"
sed 's/^/hosts /; s/\t/ /' /etc/hosts
sed 's/^/resolv /' /etc/resolv.conf
ip -4 -o addr show dev eth0 | sed 's/.*inet \([^ ]*\).*/address \1/'
echo "mtu $(cat /sys/class/net/eth0/mtu)"
ip route | sed 's/^/route /; s/ *$//'
"#;

/// Addresses of the host, and of another host on the same link (from the prefix for documentation,
/// RFC 3849).
const HOST_V6: &str = "2001:db8::10";
const OTHER_HOST: &str = "2001:db8::20";

/// Shell commands that print the IPv6 configuration of the guest.
const SHOW_IPV6: &str = r#"
ip -6 -o addr show dev eth0 | sed 's/.*inet6 \([^ ]*\).*/address \1/'
ip -6 route | sed 's/^/route /'
sed 's/^/hosts /; s/\t/ /' /etc/hosts
"#;

/// Shell commands of a hostile guest that send packets for `::1` out over its Ethernet device.
const TRY_LOOPBACK_V6: &str = "
ip -6 addr del ::1/128 dev lo
ip -6 route add ::1/128 via fe80::a3:53ff:fe00:2 dev eth0
try loopback [::1]:8001
";

/// Moves this thread into a new network namespace with the addresses of a host. Threads and
/// processes that it starts are in that namespace as well.
fn enter_host_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for arguments in [
        "link set lo up".to_owned(),
        format!("address add {HOST}/32 dev lo"),
        format!("address add {METADATA}/32 dev lo"),
    ] {
        ip(&arguments);
    }
}

/// Runs ip(8) in the network namespace of this thread.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Connects the network namespace of this thread by IPv6 to another one, where HTTP servers listen on
/// these ports of [`OTHER_HOST`]. Returns the counts of their connections.
fn serve_on_other_host<const N: usize>(ports: [u16; N]) -> [Arc<AtomicU32>; N] {
    for arguments in [
        "link add host0 type veth peer name other0",
        "link set host0 addrgenmode none",
        "link set host0 up",
        &format!("address add {HOST_V6}/64 dev host0 nodad"),
        "address add fe80::10/64 dev host0 nodad",
    ] {
        ip(arguments);
    }
    let (to_main, from_thread) = std::sync::mpsc::channel();
    let (to_thread, from_main) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        to_main.send(nix::unistd::gettid()).unwrap();
        let () = from_main.recv().unwrap();
        ip("link set other0 up");
        ip(&format!("address add {OTHER_HOST}/64 dev other0 nodad"));
        ports.map(|port| serve(&format!("[{OTHER_HOST}]:{port}")))
    });
    ip(&format!("link set other0 netns {}", from_thread.recv().unwrap()));
    to_thread.send(()).unwrap();
    thread.join().unwrap()
}

/// Starts an HTTP server on `address` and returns the count of its connections.
fn serve(address: &str) -> Arc<AtomicU32> {
    let listener = TcpListener::bind(address).unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A connection without a request counts as well.
            counted.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut part = [0; 1024];
            // The request is read up to its empty line, because the kernel resets a connection that
            // is closed with unread data.
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(count @ 1..) => request.extend(&part[..count]),
                    _ => break,
                }
            }
            // The client may be gone already.
            let _sent = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n");
        }
    });
    count
}

/// Starts a DNS server on [`HOST`] that resolves every name to [`HOST`] (RFC 1035).
fn serve_names() {
    let socket = UdpSocket::bind((HOST, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            let mut answer = question[..count].to_vec();
            // A response without an error, with recursion desired and available.
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            // The question ends with type A and class IN. Questions of other types get no records.
            if answer[count - 4..count] == [0, 1, 0, 1] {
                // One answer: the name of the question, type A, class IN, a TTL of 60 s, 4 bytes.
                answer[6..8].copy_from_slice(&[0, 1]);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 10]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// Line that follows the output of a script.
const END_OF_SCRIPT: &str = "end of the script";

/// Fetches a file of the image from the HTTP server of the guest. Returns `None` if a call fails.
fn fetch(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /new HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// Starts a box that runs `script`, prints [`END_OF_SCRIPT`], and then serves HTTP on port 80.
fn start(script: &str, network: Value) -> Shim {
    // With `tsi`, a shim without capabilities may not listen on port 80. The box runs until its stop
    // all the same.
    let server = "httpd -f -p 80 -h /srv/data || exec sleep 1000";
    let script = format!("{TRY}{script}\necho {END_OF_SCRIPT}\n{server}");
    Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        let program = variable("A3S_BOX_WORKLOAD");
        let directory = program.parent().unwrap();
        config["mounts"] =
            json!([{"type": "virtiofs", "source": directory, "target": "/w", "read_only": true}]);
        config["network"] = network;
        config["hostname"] = json!("web.example.org");
    })
}

/// Waits until the script has ended and returns the lines of its output.
fn script_output(shim: &Shim) -> Vec<String> {
    let text = || String::from_utf8(shim.console()).unwrap();
    let has_ended = || text().lines().any(|line| line == END_OF_SCRIPT);
    let start = std::time::Instant::now();
    while !has_ended() {
        assert!(start.elapsed() < a3s_box_vm_tests::PATIENCE, "{shim}");
        std::thread::sleep(Duration::from_millis(50));
    }
    text().lines().map(str::to_owned).collect()
}

/// Panics unless the output contains each of `lines`.
fn assert_lines(output: &[String], lines: &[&str]) {
    for line in lines {
        assert!(output.iter().any(|found| found == line), "no `{line}` in {output:#?}");
    }
}

/// Panics unless the guest has tried to reach each of `names` and failed.
fn assert_not_reached(output: &[String], names: &[&str]) {
    for name in names {
        let start = format!("{name} not reached");
        assert!(output.iter().any(|line| line.starts_with(&start)), "no `{start}` in {output:#?}");
    }
}

/// Returns the codes of all warnings.
fn warnings(shim: &Shim) -> Vec<&str> {
    let warnings = shim.events.iter().filter(|event| event["type"] == "warning");
    warnings.map(|event| event["code"].as_str().unwrap()).collect()
}

/// Stops the box with SIGTERM.
fn stop(shim: &mut Shim) {
    kill(Pid::from_raw(i32::try_from(shim.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    shim.end();
    assert_eq!(shim.events.last().unwrap()["reason"], "stopped", "{shim}");
}

#[test]
fn a_guest_with_egress_reaches_the_network_but_not_loopback_or_metadata() {
    enter_host_network();
    let server = serve(&format!("{HOST}:8000"));
    let loopback = serve("127.0.0.1:8001");
    let metadata = serve(&format!("{METADATA}:80"));
    serve_names();
    let script = format!(
        "{SHOW_CONFIGURATION}\ntry server {HOST}:8000\nnslookup name.example {HOST} | sed 's/^/dns /'\n\
         try metadata {METADATA}:80\ntry gateway 10.0.2.2:8001\n\
         try this 0.0.0.0:8001\n{TRY_LOOPBACK}"
    );
    let publish = json!([{"host_address": "127.0.0.1", "host_port": 80, "guest_port": 80}]);
    let network = json!({"mode": "passt", "egress": "allow", "dns": [HOST], "publish": publish});
    let mut shim = start(&script, network);
    let output = script_output(&shim);
    assert_lines(
        &output,
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
        output.iter().any(|line| line.starts_with("dns Address") && line.contains(HOST)),
        "{output:#?}"
    );
    let counts = [&server, &loopback, &metadata].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 0, 0]);
    eventually("the published port answers", || {
        fetch("127.0.0.1:80").as_deref() == Some("from layer 6\n")
    });
    assert!(
        TcpStream::connect((HOST, 80)).is_err(),
        "the port is published on another address, too"
    );
    stop(&mut shim);
    assert_eq!(warnings(&shim), [""; 0]);
}

#[test]
fn a_guest_with_rules_reaches_what_they_name_and_answers_on_published_ports() {
    enter_host_network();
    let named = serve(&format!("{HOST}:8000"));
    let others = [serve(&format!("{HOST}:8001")), serve(&format!("{METADATA}:80"))];
    serve_names();
    let script = format!(
        "try named {HOST}:8000\ntry other {HOST}:8001\ntry metadata {METADATA}:80\n\
         nslookup name.example {HOST} | sed 's/^/dns /'"
    );
    let rules = json!([{"to": HOST, "ports": [8000], "protocol": "tcp"}, {"to": METADATA}]);
    let publish = json!([{"host_address": HOST, "host_port": 80, "guest_port": 80}]);
    let network = json!({"mode": "passt", "egress": rules, "dns": [HOST], "publish": publish});
    let mut shim = start(&script, network);
    let output = script_output(&shim);
    assert_lines(&output, &["named reached"]);
    assert_not_reached(&output, &["other", "metadata"]);
    // The name server of the config needs no rule.
    assert!(
        output.iter().any(|line| line.starts_with("dns Address") && line.contains(HOST)),
        "{output:#?}"
    );
    assert_eq!(named.load(Ordering::SeqCst), 1);
    assert_eq!(others.map(|count| count.load(Ordering::SeqCst)), [0; 2]);
    eventually("the published port answers", || {
        fetch(&format!("{HOST}:80")).as_deref() == Some("from layer 6\n")
    });
    stop(&mut shim);
    let refused = shim.events.iter().filter(|event| event["type"] == "network.refused");
    let found: Vec<_> = refused.map(|event| (&event["address"], &event["port"])).collect();
    let port_of_other = (&json!(HOST), &json!(8001));
    let port_of_metadata = (&json!(METADATA), &json!(80));
    assert_eq!(found, [port_of_other, port_of_metadata], "{shim}");
}

#[test]
fn a_guest_reaches_other_hosts_by_ipv6_rules_and_answers_on_ipv6_ports() {
    enter_host_network();
    let [named, other] = serve_on_other_host([8000, 8001]);
    let of_host = [serve(&format!("[{HOST_V6}]:8000")), serve("[::1]:8001")];
    let script = format!(
        "{SHOW_IPV6}\ntry named [{OTHER_HOST}]:8000\ntry other [{OTHER_HOST}]:8001\n\
         try host [{HOST_V6}]:8000\ntry metadata [fd00:ec2::254]:80\n{TRY_LOOPBACK_V6}"
    );
    let rules = json!([{"to": "2001:db8::/64", "ports": [8000], "protocol": "tcp"}]);
    let publish = json!([{"host_address": "::1", "host_port": 80, "guest_port": 80}]);
    let network = json!({"mode": "passt", "egress": rules, "not_host": true, "publish": publish});
    let mut shim = start(&script, network);
    let output = script_output(&shim);
    assert_lines(
        &output,
        &[
            "address fdfb:61f7:afae::15/128",
            "address fe80::a3:53ff:fe00:f/64",
            "hosts 10.0.2.15 web.example.org web",
            "hosts fdfb:61f7:afae::15 web.example.org web",
            "named reached",
        ],
    );
    let route = "route default via fe80::a3:53ff:fe00:2 dev eth0";
    assert!(output.iter().any(|line| line.starts_with(route)), "{output:#?}");
    assert_not_reached(&output, &["other", "host", "metadata", "loopback"]);
    // The first three are refused at once. Without an answer, they would report another error.
    let refused = output.iter().filter(|line| line.contains("onnection refused"));
    assert!(refused.count() >= 3, "{output:#?}");
    assert_eq!(named.load(Ordering::SeqCst), 1);
    assert_eq!(other.load(Ordering::SeqCst), 0);
    assert_eq!(of_host.map(|count| count.load(Ordering::SeqCst)), [0; 2]);
    eventually("the published port answers", || {
        fetch("[::1]:80").as_deref() == Some("from layer 6\n")
    });
    assert!(TcpStream::connect("127.0.0.1:80").is_err(), "the port is published by IPv4, too");
    stop(&mut shim);
    let starting = shim.events.iter().find(|event| event["type"] == "vm.starting").unwrap();
    assert_eq!(starting["ipv6"], true, "{shim}");
    let refused = shim.events.iter().filter(|event| event["type"] == "network.refused");
    let found: Vec<_> = refused.map(|event| &event["address"]).collect();
    for address in [OTHER_HOST, HOST_V6, "fd00:ec2::254"] {
        assert!(found.contains(&&json!(address)), "{shim}");
    }
}

#[test]
fn a_guest_without_egress_reaches_nothing_but_its_published_port_is_reachable() {
    enter_host_network();
    let counts =
        [serve(&format!("{HOST}:8000")), serve("127.0.0.1:8001"), serve(&format!("{METADATA}:80"))];
    let script = format!(
        "{SHOW_CONFIGURATION}\ntry server {HOST}:8000\nip route add default via 10.0.2.2\n\
         try routed {HOST}:8000\ntry metadata {METADATA}:80\n\
         try gateway 10.0.2.2:8001\n{TRY_LOOPBACK}"
    );
    let publish = json!([{"host_address": HOST, "host_port": 80, "guest_port": 80}]);
    let mut shim = start(&script, json!({"mode": "passt", "publish": publish}));
    let output = script_output(&shim);
    assert_lines(
        &output,
        &[
            "hosts 10.0.2.15 web.example.org web",
            "resolv # This box has no name servers.",
            "address 10.0.2.15/24",
            "route 10.0.2.0/24 dev eth0 scope link  src 10.0.2.15",
        ],
    );
    assert_not_reached(&output, &["server", "routed", "metadata", "gateway", "loopback"]);
    assert!(!output.iter().any(|line| line.starts_with("route default")), "{output:#?}");
    assert_eq!(counts.map(|count| count.load(Ordering::SeqCst)), [0; 3]);
    let published = format!("{HOST}:80");
    eventually("the published port answers", || {
        fetch(&published).as_deref() == Some("from layer 6\n")
    });
    assert!(
        TcpStream::connect("127.0.0.1:80").is_err(),
        "the port is published on another address, too"
    );

    // The gate and, with it, passt end. The box must go on without a network, and no thread of the
    // shim may spin on the closed socket.
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

/// Returns the pid of the shim. In the lab, the child is `taskset`, which has become the shim by
/// execve(2).
fn shim_pid(shim: &Shim) -> u32 {
    shim.child.id()
}

/// Returns the CPU time of the shim, with its guest, in clock ticks of 10 ms.
fn cpu_ticks(shim: &Shim) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim_pid(shim))).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime are the fields 14 and 15 (proc(5)). The split removed the first two.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn tsi_reaches_the_loopback_of_the_host_and_emits_a_warning() {
    enter_host_network();
    let loopback = serve("127.0.0.1:8001");
    let script = "try loopback 127.0.0.1:8001\nhostname\nsed 's/\\t/ /' /etc/hosts";
    let mut shim = start(script, json!({"mode": "tsi"}));
    assert_lines(
        &script_output(&shim),
        &["loopback reached", "web.example.org", "203.0.113.1 web.example.org web"],
    );
    assert_eq!(loopback.load(Ordering::SeqCst), 1);
    stop(&mut shim);
    assert_eq!(warnings(&shim), ["host_network"]);
}

#[test]
fn a_guest_without_a_network_has_a_host_name_and_only_a_loopback_device() {
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
