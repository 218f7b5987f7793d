# For Puma: who answers; /slow takes a second and a half.
run lambda { |env|
  sleep 1.5 if env["PATH_INFO"] == "/slow"
  [200, { "Content-Type" => "text/plain" }, [Process.pid.to_s]]
}
