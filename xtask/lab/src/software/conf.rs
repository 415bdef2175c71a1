//! Configuration files of the servers that take no command line.

use anyhow::{Context, Result};

use super::Start;

/// Directives that keep an nginx to its own directory, and in the foreground.
pub fn nginx_head(directory: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/tmp;\n"))
        .concat();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {directory}/nginx.pid;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n{temporary}\
         keepalive_requests 1000000;\n"
    )
}

impl Start<'_> {
    pub(super) fn nginx_conf(&self) -> String {
        let Self { address, keep_alive, .. } = self;
        let head = nginx_head(&self.place.directory.to_string_lossy());
        let (ssl, files) = if self.place.tls {
            let (key, certificate) = (self.software.key(), self.software.certificate());
            let files = format!(
                "ssl_certificate_key {}; ssl_certificate {};",
                key.display(),
                certificate.display()
            );
            (" ssl", files)
        } else {
            ("", String::new())
        };
        format!(
            "{head}access_log off;\nserver {{\nlisten {address}{ssl}; {files}\n\
             keepalive_timeout {}ms;\nreturn 200 hello;\n}}\n}}\n",
            keep_alive.as_millis()
        )
    }

    pub(super) fn apache_conf(&self) -> Result<String> {
        let directory = self.place.directory.display();
        let tls = if self.place.tls {
            format!(
                "SSLEngine on\nSSLCertificateKeyFile {}\nSSLCertificateFile {}\n",
                self.software.key().display(),
                self.software.certificate().display()
            )
        } else {
            String::new()
        };
        // A rewrite to status 200 answers every method with the document of that status.
        let module = |name: &str| {
            format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
        };
        let modules: String = ["mpm_event", "authz_core", "rewrite", "ssl"].map(module).concat();
        Ok(format!(
            "ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/apache.pid\n\
             ServerName lab\nUser www-data\nGroup www-data\nErrorLog /dev/stderr\n{modules}\
             Listen {}\nKeepAlive On\nKeepAliveTimeout {}\nMaxKeepAliveRequests 0\n\
             RewriteEngine On\nRewriteRule ^ - [R=200]\nErrorDocument 200 \"ok\n{tls}{}\n",
            self.address,
            self.seconds()?,
            self.line
        ))
    }

    pub(super) fn haproxy_conf(&self) -> Result<String> {
        let Self { address, keep_alive, .. } = self;
        let behind = self.behind.context("a proxy without a server behind it")?;
        Ok(format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n \
             timeout http-request 30s\n timeout http-keep-alive {}ms\n\
             frontend lab\n bind {address}\n default_backend behind\n\
             backend behind\n server behind {behind}\n",
            keep_alive.as_millis()
        ))
    }

    pub(super) fn caddy_conf(&self) -> String {
        let Self { address, keep_alive, .. } = self;
        format!(
            "{{\n admin off\n auto_https off\n servers {{\n timeouts {{\n idle {}ms\n }}\n }}\n}}\n\
             http://:{} {{\n bind {}\n respond hello\n}}\n",
            keep_alive.as_millis(),
            address.port(),
            address.ip()
        )
    }

    /// A `CATALINA_BASE` with one connector and one static page.
    pub(super) fn tomcat_files(&self) -> Result<()> {
        let Self { address, keep_alive, line, .. } = self;
        let keep_alive = format!("keepAliveTimeout=\"{}\"", keep_alive.as_millis());
        let keep_alive = if line.is_empty() { &*keep_alive } else { line };
        self.file(
            "conf/server.xml",
            &format!(
                "<Server port=\"-1\"><Service name=\"lab\">\n\
                 <Connector address=\"{}\" port=\"{}\" protocol=\"HTTP/1.1\" \
                 {keep_alive} maxKeepAliveRequests=\"-1\"/>\n\
                 <Engine name=\"lab\" defaultHost=\"lab\">\
                 <Host name=\"lab\" appBase=\"webapps\"/></Engine>\n</Service></Server>\n",
                address.ip(),
                address.port(),
            ),
        )?;
        self.file(
            "conf/web.xml",
            "<web-app xmlns=\"https://jakarta.ee/xml/ns/jakartaee\" version=\"6.0\">\n\
             <servlet><servlet-name>default</servlet-name>\
             <servlet-class>org.apache.catalina.servlets.DefaultServlet</servlet-class></servlet>\n\
             <servlet-mapping><servlet-name>default</servlet-name>\
             <url-pattern>/</url-pattern></servlet-mapping>\n\
             <welcome-file-list><welcome-file>index.html</welcome-file></welcome-file-list>\n\
             </web-app>\n",
        )?;
        self.file("webapps/ROOT/index.html", "hello\n")?;
        self.file("temp/empty", "")?;
        Ok(())
    }
}
