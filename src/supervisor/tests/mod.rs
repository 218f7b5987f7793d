mod player;
