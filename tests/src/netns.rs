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

/// Why they cannot be made, where that is nobody's mistake.
const FORBIDDEN: [&str; 4] = ["Operation not permitted", "Permission denied", "ip: not found", "No such file"];

/// See the module.
pub struct Network {
    keeper: Child,
    number: u8,
    hosts: Vec<String>,
    wires: Vec<(String, Wire)>,
    /// Ports that are not as they were made.
    changed: Mutex<Vec<String>>,
}

impl Network {
    /// A network of these hosts, of which some hang on a cable that can be slow and lossy. Nothing where that is not
    /// permitted, which is said aloud: the test does not run.
    pub fn start(hosts: &[&str], wired: &[&str]) -> Option<Self> {
        for number in 0..=u8::MAX {
            match Self::numbered(number, hosts) {
                Ok(mut network) => {
                    let made = wired.iter().try_for_each(|host| network.wire(host));
                    return made.map_or_else(|why| not_run(&why), |()| Some(network));
                }
                // another test's
                Err(said) if said.contains("File exists") => {}
                Err(said) => return not_run(&said),
            }
        }
        panic!("256 networks of tests are there already: `ip netns` lists them");
    }

    fn numbered(number: u8, hosts: &[&str]) -> Result<Self, String> {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh", &format!("sensorium{number}"), &format!("198.18.{number}")]).args(hosts);
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut said = String::new();
        for line in BufReader::new(keeper.stdout.take().expect("its output")).lines().map_while(Result::ok) {
            if line == "ready" {
                let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
                return Ok(Self { keeper, number, hosts, wires: Vec::new(), changed: Mutex::default() });
            }
            said.push_str(&line);
        }
        let _ = keeper.wait();
        Err(said)
    }

    /// Puts a cable of this process between a host and the bridge.
    fn wire(&mut self, host: &str) -> Result<(), String> {
        let (port, switch, namespace) = (self.port(host), self.namespace("switch"), self.namespace(host));
        let [near, far] = ["near", "far"].map(|end| format!("{end}{}-{}", self.number, self.place(host)));
        let wire = Wire::new(&near, &far)?;
        ip(&["-n", &switch, "link", "del", &port]); // and the host's end with it
        ip(&["link", "set", &near, "netns", &switch, "name", &port]);
        ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"]);
        ip(&["link", "set", &far, "netns", &namespace, "name", "eth0"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{}/24", self.address(host)), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        self.wires.push((host.to_owned(), wire));
        Ok(())
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
        format!("sensorium{}-{host}", self.number)
    }

    /// Where a host is reached.
    pub fn address(&self, host: &str) -> IpAddr {
        Ipv4Addr::new(198, 18, self.number, self.place(host)).into()
    }

    /// Two hosts no longer hear each other; both hear everybody else. One pair at a time.
    pub fn part(&self, one: &str, other: &str) {
        self.scatter(&[one, other]);
    }

    /// None of these hosts hears another of them any more; all hear everybody else. One group at a time.
    pub fn scatter(&self, hosts: &[&str]) {
        let ports = hosts.iter().map(|host| self.port(host));
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
        let switch = self.namespace("switch");
        let arguments = ["-n", &switch, "link", "set", port];
        ip(&arguments.into_iter().chain(change.iter().copied()).collect::<Vec<_>>());
    }
}

/// Past the capture of the output of a test that passes. With `SENSORIUM_TEST_NAMESPACES=required` it fails instead.
fn not_run(why: &str) -> Option<Network> {
    let required = std::env::var("SENSORIUM_TEST_NAMESPACES").is_ok_and(|wish| wish == "required");
    assert!(!required && FORBIDDEN.iter().any(|known| why.contains(known)), "network namespaces: {why}");
    let _ = writeln!(std::io::stderr(), "NOT RUN, network namespaces cannot be made here: {why}");
    None
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
