//! Real applications and next hops, which make variables of header names or act on the `connection` header: what they read is
//! what idleguard wrote.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use idleguard_harness::envoy::Config;
use idleguard_harness::project;
use idleguard_harness::servers::{self, Server};
use serde_json::json;
use tokio::net::TcpStream;

use super::request::{exchange_bytes, exchange_for_body};
use super::{far_end, project_config, start};

const MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// What a client claims, in names that some of them take for others.
const CLAIMS: &str = "X.Real.IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nx~real-ip: 6.6.6.6\r\nX.Forwarded.For: 6.6.6.6\r\n\
                      Client-IP: 6.6.6.6\r\nClient.IP: 6.6.6.6\r\nX-Forwarded: 6.6.6.6\r\nForwarded-For: 6.6.6.6\r\n\
                      X!Cluster!Client!IP: 6.6.6.6\r\nTrue_Client_IP: 6.6.6.6\r\n";

async fn body_of(to: SocketAddr) -> String {
    let request = format!(
        "GET /env.php HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.5\r\n{CLAIMS}Connection: close\r\n\r\n"
    );
    let mut tcp = TcpStream::connect(to).await.expect("a connection");
    let (status, body) = exchange_for_body(&mut tcp, request.as_bytes()).await.expect("an answer");
    let body = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 200, "{body}");
    body
}

/// The application tells its variables, one a line. Alone it believes the client; behind idleguard it doesn't.
async fn reads_the_client(application: &Server) {
    let Some(project) = project_config() else { return };
    let project = project.upstream(application.address());
    let config = project.clone().edit_http_filter(|http| http["client_ip"] = json!({"trusted_proxies": ["127.0.0.1"]}));
    let through = async |config: &Config| body_of(start(config, 1).await.ingress()).await;
    let alone = through(&project.without_idleguard()).await;
    assert!(
        alone.contains("6.6.6.6"),
        "the application takes no name for another, so there is nothing to see: {alone}"
    );
    let guarded = through(&config).await;
    assert!(!guarded.contains("6.6.6.6"), "{guarded}");
    for line in ["HTTP_X_REAL_IP=203.0.113.5\n", "HTTP_X_FORWARDED_FOR=203.0.113.5, 127.0.0.1\n"] {
        assert!(guarded.contains(line), "no {line} in {guarded}");
    }
}

const PHP: &str = "<?php foreach ($_SERVER as $name => $value) if (is_string($value)) echo \"$name=$value\\n\";";

#[tokio::test]
async fn cgi_behind_lighttpd() {
    let lighttpd = Server::program("lighttpd", |program, directory, port| {
        let script = directory.join("env.php"); // it is none, but the path is the same for all
        fs::write(&script, "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nenv\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        lighttpd(program, directory, port, "")
    });
    let Some(lighttpd) = project::or_skip(lighttpd.await) else { return };
    reads_the_client(&lighttpd).await;
}

#[tokio::test]
async fn php_cgi_behind_lighttpd() {
    let Some(php) = project::or_skip(installed("php-cgi")) else { return };
    let lighttpd = Server::program("lighttpd", move |program, directory, port| {
        fs::write(directory.join("env.php"), PHP)?;
        fs::write(directory.join("php.ini"), "cgi.force_redirect = 0\n")?;
        lighttpd(program, directory, port, &php.to_string_lossy())
    });
    let Some(lighttpd) = project::or_skip(lighttpd.await) else { return };
    reads_the_client(&lighttpd).await;
}

/// lighttpd with `mod_cgi` for its directory.
fn lighttpd(
    program: &std::path::Path,
    directory: &std::path::Path,
    port: u16,
    interpreter: &str,
) -> anyhow::Result<Command> {
    let root = directory.display();
    let configuration = format!(
        "server.modules = (\"mod_setenv\", \"mod_cgi\")\nserver.document-root = \"{root}\"\nserver.bind = \"127.0.0.1\"\n\
         server.port = {port}\nserver.upload-dirs = (\"{root}\")\nserver.http-parseopts = (\"header-strict\" => \"disable\")\n\
         setenv.add-environment = (\"PHPRC\" => \"{root}\")\ncgi.assign = (\".php\" => \"{interpreter}\")\n"
    );
    let path = directory.join("lighttpd.conf");
    fs::write(&path, configuration)?;
    let mut command = Command::new(program);
    command.arg("-D").arg("-f").arg(path);
    Ok(command)
}

#[tokio::test]
async fn php_fpm_behind_nginx() {
    let php = Server::program("php-fpm8.2", |program, directory, port| {
        let configuration = format!(
            "[global]\nerror_log = /dev/stderr\n[www]\nuser = root\ngroup = root\nlisten = 127.0.0.1:{port}\n\
             pm = static\npm.max_children = 1\n"
        );
        let path = directory.join("fpm.conf");
        fs::write(&path, configuration)?;
        let mut command = Command::new(program);
        command.arg("-F").arg("-R").arg("-y").arg(path);
        Ok(command)
    });
    let Some(php) = project::or_skip(php.await) else { return };
    let to = php.address();
    let nginx = Server::program("nginx", move |program, directory, port| {
        fs::write(directory.join("env.php"), PHP)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let root = directory.display();
        let http = format!(
            "ignore_invalid_headers off; underscores_in_headers on;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    fastcgi_pass {to}; fastcgi_param SCRIPT_FILENAME {root}/env.php; fastcgi_param REQUEST_METHOD GET;
                }}
            }}"
        );
        servers::nginx(program, directory, &http)
    });
    let Some(nginx) = project::or_skip(nginx.await) else { return };
    reads_the_client(&nginx).await;
}

#[tokio::test]
async fn wsgi_behind_gunicorn() {
    let gunicorn = Server::program("gunicorn", |program, directory, port| {
        let application = "def application(environ, start_response):\n    \
                           start_response('200 OK', [('Content-Type', 'text/plain')])\n    \
                           lines = [f'{name}={value}\\n' for name, value in environ.items() if isinstance(value, str)]\n    \
                           return [''.join(lines).encode()]\n";
        fs::write(directory.join("env.py"), application)?;
        let mut command = Command::new(program);
        command.current_dir(directory).args(["--workers", "1", "--bind"]).arg(format!("127.0.0.1:{port}"));
        command.args(["--worker-tmp-dir"]).arg(directory).arg("env:application");
        Ok(command)
    });
    let Some(gunicorn) = project::or_skip(gunicorn.await) else { return };
    reads_the_client(&gunicorn).await;
}

/// Apache httpd removes what the `connection` header of an upgrade names.
#[tokio::test]
async fn apache_as_the_next_hop_of_an_upgrade() {
    let application = far_end::http1().await;
    let apache = Server::program("apache2", move |program, directory, port| {
        let root = directory.display();
        let configuration = format!(
            "LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
            LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
            LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
            LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
            ServerRoot {root}\nServerName app.example\nListen 127.0.0.1:{port}\nPidFile {root}/pid
            DefaultRuntimeDir {root}\nErrorLog /dev/stderr\nProxyPreserveHost On
            ProxyPass / http://{application}/ upgrade=websocket\n"
        );
        let path = directory.join("apache.conf");
        fs::write(&path, configuration)?;
        let mut command = Command::new(program);
        command.arg("-X").arg("-f").arg(path);
        Ok(command)
    });
    let Some(apache) = project::or_skip(apache.await) else { return };
    let Some(project) = project_config() else { return };
    let project = project
        .upstream(apache.address())
        .set(&format!("{MANAGER}/upgrade_configs"), json!([{"upgrade_type": "websocket"}]));
    let guarded =
        project.clone().edit_http_filter(|http| http["client_ip"] = json!({"trusted_proxies": ["127.0.0.1"]}));
    let request = "GET / HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.5\r\nX-Real-IP: 203.0.113.5\r\n\
                   Connection: Upgrade, X-Real-IP\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: x\r\n\r\n";
    for (config, expected) in [(project.without_idleguard(), vec![]), (guarded, vec!["203.0.113.5".to_owned()])] {
        let envoy = start(&config, 1).await;
        let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
        let answer = exchange_bytes(tcp, request.as_bytes()).await.expect("an answer");
        assert_eq!((answer.status, answer.values("x-real-ip")), (101, expected), "{answer:?}");
    }
}

fn installed(name: &str) -> anyhow::Result<std::path::PathBuf> {
    project::program(name).ok_or_else(|| anyhow::anyhow!("{name} is not installed"))
}
