//! Asks the demo for four blank images, from a multi-threaded program.
//!
//! Start `weir up --demo`, then: `cargo run -p weir-client --example predict -- weir-data/c1/admin.token`

use std::path::Path;

use weir_client::{Client, Options, Request, Token};
use weir_core::ids::EndpointName;
use weir_core::tensor::Tensor;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let token_file = std::env::args().nth(1).ok_or("usage: predict TOKEN_FILE")?;
    let token = Token::read_file(&weir_host::disk::SystemDisk, Path::new(&token_file))?;
    let client = Client::connect(Options { coordinators: vec!["127.0.0.1:7300".into()], token }).await?;
    let request = Request {
        endpoint: EndpointName::parse("fashion")?,
        inputs: vec![("x".into(), Tensor::f32(&[4, 1, 28, 28], &[0.0; 4 * 784]))],
        whole: false,
        deadline: Some(std::time::Duration::from_millis(50)),
        class: None,
        outputs: vec!["probs".into()],
        min_stage: None,
        max_stage: None,
        trace: false,
    };
    for answer in client.predict(request).await? {
        println!("{} {} by {} on {}", answer.id, answer.outcome.word(), answer.stage, answer.node);
    }
    Ok(())
}
