# Who answers; /slow takes a second and a half. The listening socket is Server::Starter's.
use strict;
use warnings;
use IO::Socket::INET;
use Server::Starter qw(server_ports);

my ($fd) = values %{ server_ports() };
my $listener = IO::Socket::INET->new;
$listener->fdopen($fd, "w") or die "fd $fd: $!";
$listener->blocking(1);
my $is_over = 0;
# Without SA_RESTART, so that a waiting accept ends.
use POSIX ();
POSIX::sigaction(POSIX::SIGTERM(), POSIX::SigAction->new(sub { $is_over = 1 }));

while (!$is_over) {
    my $client = $listener->accept or next;
    my $request = "";
    while ($request !~ /\r\n\r\n/) {
        my $count = sysread($client, $request, 4096, length $request);
        # Who is told to end answers whom it has accepted.
        next if !defined $count && $!{EINTR};
        last if !$count;
    }
    next if $request !~ m{^GET (\S+)};
    # Signals do not shorten it.
    if ($1 eq "/slow") { my $end = time + 2; select undef, undef, undef, 0.1 while time < $end }
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($$) . "\r\n\r\n$$";
    close $client;
}
