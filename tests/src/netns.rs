//! Hosts on one machine: network namespaces that are joined by a bridge, and can be cut off from each other.
//!
//! The bridge lies in a namespace of its own, where no firewall of this machine looks at what it carries; this process
//! reaches the hosts over a cable of its own into it. Making all this takes root.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::wire::{Link, Wire};

/// Makes the namespaces, says so, and removes them when the pipe on its own input closes: however a test process ends,
/// it leaves none behind. Which networks there are is told by the name of the bridge's namespace alone.
const KEEPER: &str = r#"
exec 2>&1
trap '' INT TERM HUP
own=$1 subnet=$2
shift 2
if ! said=$(ip netns add "$own-switch" 2>&1); then
    echo "$said"
    exit 1
fi
remove() {
    ip link del "$own"
    for host; do ip netns del "$own-$host"; done
    ip netns del "$own-switch"
}
make() {
    set -e
    ip -n "$own-switch" link add bridge type bridge
    ip -n "$own-switch" link set bridge up
    ip link add "$own" type veth peer name outside netns "$own-switch"
    ip -n "$own-switch" link set outside master bridge up
    ip addr add "$subnet.1/24" dev "$own"
    ip link set "$own" up
    at=1
    for host; do
        at=$((at + 1))
        ip netns add "$own-$host"
        ip -n "$own-$host" link set lo up
        ip -n "$own-switch" link add "port$at" type veth peer name eth0 netns "$own-$host"
        ip -n "$own-switch" link set "port$at" master bridge up
        ip -n "$own-$host" addr add "$subnet.$at/24" dev eth0
        ip -n "$own-$host" link set eth0 up
    done
}
(make "$@") && echo ready && cat > /dev/null
remove "$@" > /dev/null
"#;

/// See the module.
pub struct Network {
    keeper: Child,
    own: String,
    subnet: [u8; 3],
    hosts: Vec<String>,
    wires: Vec<(String, Wire)>,
    /// Ports that are not as they were made.
    changed: Mutex<Vec<String>>,
}

impl Network {
    /// A network of these hosts, or nothing where that is not permitted, which is said aloud: the test does not run.
    pub fn start(hosts: &[&str]) -> Option<Self> {
        for number in 0..=u8::MAX {
            let (own, subnet) = (format!("sensorium{number}"), [198, 18, number]);
            let mut keeper = Command::new("sh");
            keeper.args(["-c", KEEPER, "sh", &own, &subnet.map(|part| part.to_string()).join(".")]).args(hosts);
            let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut keeper = keeper.spawn().expect("a shell");
            let output = keeper.stdout.take().expect("its output");
            let said: Vec<String> = {
                let mut said = Vec::new();
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let ready = line == "ready";
                    said.push(line);
                    if ready {
                        break;
                    }
                }
                said
            };
            let said = said.join("\n");
            if said == "ready" {
                let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
                return Some(Self { keeper, own, subnet, hosts, wires: Vec::new(), changed: Mutex::default() });
            }
            let _ = keeper.wait();
            if said.contains("File exists") {
                continue; // another test's
            }
            let forbidden = ["Operation not permitted", "Permission denied", "ip: not found"];
            assert!(forbidden.iter().any(|why| said.contains(why)), "network namespaces: {said}");
            // past the capture of the output of a test that passes
            let _ = writeln!(std::io::stderr(), "NOT RUN, network namespaces cannot be made here: {said}");
            return None;
        }
        panic!("256 networks of tests are there already: `ip netns` lists them");
    }

    /// Puts a cable that can be slow and lossy between a host and the bridge.
    pub fn wire(&mut self, host: &str) {
        let (port, namespace) = (self.port(host), self.namespace(host));
        let switch = format!("{}-switch", self.own);
        let (near, far) = (format!("{}-{port}", self.own).replace("sensorium", "s"), format!("{}-{port}", self.own));
        let far = far.replace("sensorium", "t");
        let wire = Wire::new(&near, &far);
        ip(&["-n", &switch, "link", "del", &port]); // and the host's end with it
        ip(&["link", "set", &near, "netns", &switch, "name", &port]);
        ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"]);
        ip(&["link", "set", &far, "netns", &namespace, "name", "eth0"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{}/24", self.address(host)), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        self.wires.push((host.to_owned(), wire));
    }

    /// From now on a host's cable is like this, both ways.
    pub fn set(&self, host: &str, link: Link) {
        let wire = self.wires.iter().find(|(wired, _)| wired == host);
        wire.unwrap_or_else(|| panic!("{host} has no wire")).1.set(link);
    }

    fn place(&self, host: &str) -> u8 {
        let at = self.hosts.iter().position(|known| known == host);
        let at = at.unwrap_or_else(|| panic!("no host {host} among {}", self.hosts.join(", ")));
        u8::try_from(at + 2).expect("at most 250 hosts")
    }

    fn port(&self, host: &str) -> String {
        format!("port{}", self.place(host))
    }

    /// The name of a host's namespace.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.own)
    }

    /// Where a host is reached.
    pub fn address(&self, host: &str) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, self.place(host)).into()
    }

    /// Two hosts no longer hear each other; both hear everybody else. One pair at a time.
    pub fn part(&self, one: &str, other: &str) {
        let ports = [one, other].map(|host| self.port(host));
        let mut changed = self.changed.lock().expect("no test has panicked with it");
        assert!(changed.is_empty(), "{changed:?} are not healed yet");
        // ports that are isolated exchange nothing with each other
        for port in ports {
            self.bridge(&port, &["type", "bridge_slave", "isolated", "on"]);
            changed.push(port);
        }
    }

    /// A host hears nobody, and nobody hears it.
    pub fn cut_off(&self, host: &str) {
        let port = self.port(host);
        self.bridge(&port, &["nomaster"]);
        self.changed.lock().expect("no test has panicked with it").push(port);
    }

    /// All hear each other again.
    pub fn heal(&self) {
        for port in self.changed.lock().expect("no test has panicked with it").drain(..) {
            self.bridge(&port, &["master", "bridge"]);
            self.bridge(&port, &["type", "bridge_slave", "isolated", "off"]);
        }
    }

    fn bridge(&self, port: &str, change: &[&str]) {
        let switch = format!("{}-switch", self.own);
        let arguments = ["-n", &switch, "link", "set", port];
        ip(&arguments.into_iter().chain(change.iter().copied()).collect::<Vec<_>>());
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
