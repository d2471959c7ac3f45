//! Sends what it is told to on its standard input, with one client, as that client is by default.

use std::error::Error;

use reqwest::{Client, Method};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        let [method, url, count] = words[..] else { return Err(line.into()) };
        let method: Method = method.parse()?;
        let wave: Vec<_> = (0..count.parse()?)
            .map(|_| tokio::spawn(send(client.clone(), method.clone(), url.to_owned())))
            .collect();
        for request in wave {
            println!("{}", request.await?);
        }
    }
    Ok(())
}

async fn send(client: Client, method: Method, url: String) -> String {
    let mut request = client.request(method.clone(), url);
    if method == Method::POST {
        request = request.body("hello");
    }
    let answer = async {
        let response = request.send().await?;
        Ok::<_, reqwest::Error>((response.status().as_u16(), response.text().await?))
    };
    match answer.await {
        Ok((200, _)) => "ok".to_owned(),
        Ok((status, text)) => format!("{status} {}", text.trim()),
        Err(error) => told(&error),
    }
}

/// The error and what caused it.
fn told(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {}", told(cause)))
}
