//! What every gateway says of itself.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{GetClusterRequest, GetClusterResponse};

use super::super::connect::{Channel, MAX_ANSWER, Server, quick};

/// One that does not answer within this is left out.
const ANSWER: Duration = Duration::from_secs(1);

/// A gateway's word.
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) told: GetClusterResponse,
}

/// The gateways beside the one that is asked for everything, with the connections to them.
pub(super) struct Gateways<'a> {
    server: &'a Server,
    /// By address.
    known: HashMap<String, AdminClient<Channel>>,
}

impl<'a> Gateways<'a> {
    /// They are asked as `server` is: with its key and its certificates.
    pub(super) fn new(server: &'a Server) -> Self {
        Self { server, known: HashMap::new() }
    }

    /// The word of the one that was asked and of all others that answer, and the names of those that do not.
    pub(super) async fn ask(&mut self, told: &GetClusterResponse) -> (Vec<Seen>, Vec<String>) {
        let others = told.nodes.iter().filter(|node| node.role == "gateway" && node.name != told.node);
        let answers = join_all(others.map(|node| {
            let (server, known) = (self.server, self.known.get(&node.address).cloned());
            async move {
                let answer = tokio::time::timeout(ANSWER, async {
                    let mut client = match known {
                        Some(client) => client,
                        None => {
                            let channel = server.at(&node.address).connect().await.ok()?;
                            AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER)
                        }
                    };
                    let told = client.get_cluster(quick(GetClusterRequest {})).await.ok()?.into_inner();
                    Some((client, told))
                });
                (node, answer.await.ok().flatten())
            }
        }));
        let (mut seen, mut silent) = (vec![Seen { name: told.node.clone(), told: told.clone() }], Vec::new());
        let mut known = HashMap::new();
        for (node, answer) in answers.await {
            match answer {
                Some((client, told)) => {
                    known.insert(node.address.clone(), client);
                    seen.push(Seen { name: node.name.clone(), told });
                }
                None => silent.push(node.name.clone()),
            }
        }
        self.known = known;
        (seen, silent)
    }
}
