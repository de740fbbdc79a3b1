//! Tokens, and the bootstrap object: it offers `login` and nothing else.

use std::fmt;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use weir_core::ids::NodeName;
use weir_schema::predict_capnp::{self, Purpose, granted, login};

use crate::disk::Disk;
use crate::limits::Limits;
use crate::random::Random;
use crate::transport::Connection;

/// A secret that opens what its grant says. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// A token that nobody has had before.
    pub fn generate(random: &dyn Random) -> Token {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        Token(bytes)
    }

    /// Parses 64 hex digits, white space around them allowed.
    pub fn parse(text: &str) -> Option<Token> {
        weir_core::ids::Digest::parse(text.trim()).map(|bytes| Token(bytes.0))
    }

    /// Reads a token file.
    pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Token> {
        let bytes = disk.read(path)?;
        std::str::from_utf8(&bytes)
            .ok()
            .and_then(Token::parse)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a token is 64 hex digits"))
    }

    /// Writes a token file that only its owner may read.
    pub fn write_file(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        disk.write_secret(path, format!("{}\n", self.reveal()).as_bytes())
    }

    /// As text, for the one who is to have it.
    pub fn reveal(&self) -> String {
        weir_core::ids::Digest(self.0).to_string()
    }

    /// What a cluster keeps of it.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whether two hashes are equal, in a time that does not tell where they differ.
pub fn same_hash(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

/// Somebody at the door.
pub struct Caller {
    /// SHA-256 of the token that was shown.
    pub token_hash: [u8; 32],
    /// Which of its objects is wanted.
    pub purpose: Purpose,
}

/// Decides who gets which object.
pub trait Authority {
    /// Fills `granted` (server, grant, role) for whom the token is good; the text of an error is shown to the caller.
    fn admit(&self, caller: &Caller, granted: granted::Builder<'_>) -> Result<(), String>;
}

/// A node in this process, for threads that ask it a lot: each makes itself a part of it with a door of its own, which is entered without a
/// connection ([`crate::dial::enter_here`]).
#[derive(Clone)]
pub struct InProcess {
    /// The node's.
    pub name: NodeName,
    /// Called once on each such thread, inside a `LocalSet`.
    pub door: Arc<dyn Fn() -> Rc<dyn Authority> + Send + Sync>,
}

/// What a refused token is answered with: it must not tell whether it was ever good.
pub const NO_SUCH_TOKEN: &str = "this token opens nothing here; pass one with --token-file, WEIR_TOKEN_FILE or WEIR_TOKEN (the first admin token lies in the data folder of the coordinator that founded the cluster)";

/// The bootstrap object of one connection.
pub fn door(authority: Rc<dyn Authority>, connection: Connection) -> login::Client {
    capnp_rpc::new_client(Door { authority, connection })
}

struct Door {
    authority: Rc<dyn Authority>,
    connection: Connection,
}

impl login::Server for Door {
    async fn login(
        self: Rc<Self>,
        params: login::LoginParams,
        mut results: login::LoginResults,
    ) -> Result<(), capnp::Error> {
        let request = params.get()?.get_request()?;
        let token_hash = Sha256::digest(request.get_token()?).into();
        let purpose = request.get_purpose()?;
        let caller = Caller { token_hash, purpose };
        let limits = self.connection.limits().clone();
        let mut granted = results.get().init_granted();
        granted.set_protocol(crate::dial::PROTOCOL);
        granted.set_calls_in_flight(limits.calls_in_flight as u32);
        granted.set_bytes_in_flight(limits.bytes_in_flight as u64);
        granted.set_message_bytes(limits.message_bytes as u64);
        let admitted = if self.connection.is_logged_in() {
            Err("this connection has logged in already; open another".to_owned())
        } else if request.get_protocol() < crate::dial::PROTOCOL {
            Err("this server speaks a newer protocol; use a client of the cluster's version".to_owned())
        } else {
            self.authority.admit(&caller, granted)
        };
        match admitted {
            Ok(()) => {
                self.connection.logged_in();
                // Members carry what others asked, and ask in no loop: theirs is not a single caller's share.
                if purpose == Purpose::Predict {
                    self.connection.gives_way();
                }
                self.connection.peer_reads(Limits::of_caller(purpose).message_bytes);
                Ok(())
            }
            Err(message) => {
                // One try a connection.
                let connection = self.connection.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    connection.close();
                });
                Err(capnp::Error::failed(message))
            }
        }
    }
}

/// The purpose as a word, for messages.
pub fn purpose_word(purpose: predict_capnp::Purpose) -> &'static str {
    match purpose {
        Purpose::Predict => "predict",
        Purpose::Operate => "operate",
        Purpose::Member => "be a member",
        Purpose::Coordinator => "be a coordinator",
    }
}
